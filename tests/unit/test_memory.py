"""The memory of a session, measured in a process of its own."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from pruneonce.deployment import memory
from tests.unit.test_execution import linear_model

BYTES = 64 << 20


@pytest.mark.parametrize(("size", "least", "most"), [(1, 0, 0.5 * BYTES), (BYTES, 0.9 * BYTES, 2.5 * BYTES)])
def test_a_model_takes_what_its_weights_take(tmp_path, size, least, most):
    """Not what the libraries take, and not what this process holds."""
    weight = np.ones((size // 4096 or 1, 1024), np.float32)
    shape = ["rows", 1024]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", len(weight)])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "model.onnx")
    inputs = {"x": np.ones((1, len(weight)), np.float32)}
    assert least <= memory.resident_bytes(tmp_path / "model.onnx", inputs, threads=1, execution="stock") < most


def test_the_sparse_kernels_keep_nothing_of_their_rewriting(int8_onnx):
    """A tiny model: what both take is that of ONNX Runtime itself."""
    inputs = {name: np.full((2, 9), 1) for name in ("input_ids", "attention_mask")}
    stock, sparse = (
        memory.resident_bytes(int8_onnx.path, inputs, threads=1, execution=name) for name in ("stock", "sparse")
    )
    assert 0 < sparse < stock + 16e6


def test_the_rewritten_model_is_given_back(tmp_path):
    """The session holds the sparse form once; the bytes that it was loaded from are free again."""
    (tmp_path / "model.onnx").write_bytes(linear_model(0.2, outputs=4096, inputs=6144))
    inputs = {"x": np.ones((1, 1, 6144), np.float32)}
    words = 0.59 * 4096 * 6144 / 4
    found = memory.resident_bytes(tmp_path / "model.onnx", inputs, threads=1, execution="sparse")
    assert 5 * words < found < 2 * 5 * words
