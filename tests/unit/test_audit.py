"""The audit of kernels: integer products for every quantized linear, by name where one is float."""

import numpy as np
import onnx
import pytest

from pruneonce.deployment import audit
from pruneonce.errors import ExportError
from tests.unit.test_weight_names import READERS

LAYER = "encoder.layer.0.attention.self.query"


def test_the_optimised_graph_is_another_one_and_the_file_stays(dense_onnx):
    before = dense_onnx.path.read_bytes()
    graph = audit.optimised(dense_onnx.path).graph
    assert len(graph.node) < len(onnx.load(dense_onnx.path).graph.node)
    assert dense_onnx.path.read_bytes() == before


def test_a_weight_with_readers_of_two_kinds_names_both(tmp_path):
    path, weight = tmp_path / "model.onnx", np.array([[1, 0], [2, 4]], np.float32)
    onnx.save(onnx.parser.parse_model(READERS.replace("Sum(b, x)", "Mul(b, w)").replace("n, 2", "2, 2")), path)
    kernels = audit.Audit(path).kernels({"one": weight})
    assert kernels == {"one": "MatMul + Mul"}
    with pytest.raises(ExportError, match="MatMul"):
        audit.check_integer(kernels)


def test_onnx_runtime_takes_the_faster_kernels(exported):
    kernels = audit.Audit(exported.path).operators()
    assert kernels["LayerNormalization"] == 5
    assert kernels["Gelu"] == 2
    assert not {"SkipLayerNormalization", "BiasGelu"} & set(kernels)
    integers = kernels.get("MatMulIntegerToFloat", 0)
    assert integers == (12 if exported.weights[LAYER].dtype == np.int8 else 0)


def test_int8_runs_on_integers_and_only_the_head_in_float(int8_onnx):
    found = audit.Audit(int8_onnx.path)
    kernels = found.kernels(int8_onnx.weights)
    assert len(kernels) == 12
    assert set(kernels.values()) == {"MatMulIntegerToFloat"}
    audit.check_integer(kernels)
    assert len(found.float_products()) == 2  # pooler and classifier


def test_a_float_layer_does_not_pass_for_an_integer_one(dense_onnx):
    found = audit.Audit(dense_onnx.path)
    kernels = found.kernels(dense_onnx.weights)
    assert len(found.float_products()) == 14
    with pytest.raises(ExportError, match=LAYER):
        audit.check_integer(kernels)


@pytest.mark.parametrize("kernel", ["MatMul", "Gemm", "FusedMatMul", "MatMulNBits", "not found"])
def test_check_integer_names_the_layer(kernel):
    with pytest.raises(ExportError, match=f"'b': '{kernel}'"):
        audit.check_integer({"a": "MatMulIntegerToFloat", "b": kernel})


def test_a_weight_of_another_model_is_not_found(int8_onnx):
    other = {"x": np.ones((3, 4), np.int8)}
    assert audit.Audit(int8_onnx.path).kernels(other) == {"x": "not found"}
