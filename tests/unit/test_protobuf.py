"""Tensors in the bytes of an ONNX file, found where onnx has them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pruneonce.deployment import protobuf
from tests.unit.test_packing import sparse_weight, write_model


@pytest.mark.parametrize("data_type", [n for n in TensorProto.DataType.values() if n not in (0, TensorProto.STRING)])
def test_the_width_of_every_data_type(data_type):
    if data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        assert protobuf.WIDTHS[data_type] in (4, 8)  # of a part
        return
    size = helper.tensor_dtype_to_np_dtype(data_type).itemsize
    assert protobuf.WIDTHS.get(data_type, 1) == size


def test_tensors_are_found_where_onnx_has_them(tmp_path):
    table = np.ones((40, 30), np.float32)
    model = write_model(tmp_path / "model.onnx", weight=sparse_weight(), table=table, bias=np.ones(5, np.float32))
    with model.open("rb") as file:
        spans = {span.name: span for span in protobuf.tensors(file)}
    data = model.read_bytes()
    proto = onnx.load(model)
    assert list(spans) == ["weight", "table", "bias"] == [t.name for t in proto.graph.initializer]
    for tensor in proto.graph.initializer:
        span = spans[tensor.name]
        assert data[span.start : span.start + span.size] == tensor.raw_data
    assert {name: span.width for name, span in spans.items()} == {"weight": 1, "table": 4, "bias": 4}
