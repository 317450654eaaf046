"""Names of weights in an ONNX file: found by content, also where layers share a matrix or have equal ones."""

import shutil

import numpy as np
import onnx
import pytest
import torch

from pruneonce.deployment import audit, export, inspect, parity, weight_names
from pruneonce.errors import ExportError
from pruneonce.sparsity import masks
from tests.conftest import PRUNABLE, random_classifier, token_batch

LAYER = "encoder.layer.0.attention.self.query"


def test_a_weight_that_the_file_does_not_hold_is_an_error(dense_onnx, tmp_path):
    path = tmp_path / "model.onnx"
    shutil.copy(dense_onnx.path, path)
    changed = dense_onnx.weights[LAYER].copy()
    changed[0, 0] = np.nextafter(changed[0, 0], 1)
    with pytest.raises(ExportError, match=LAYER):
        weight_names.name_weights(path, {LAYER: changed})


def test_layers_with_equal_weights_keep_their_names(tmp_path):
    model = random_classifier()
    layers = masks.prunable(model, PRUNABLE)
    with torch.no_grad():
        for layer in list(layers)[:3]:  # query, key, value: all zero, say
            layers[layer].weight.zero_()
    weights = {name: m.weight.detach().numpy() for name, m in layers.items()}
    path = tmp_path / "model.onnx"
    export.to_onnx(model, path)
    weight_names.name_weights(path, weights)
    found = inspect.prunable_weights(path)
    assert sorted(found) == sorted(weights)
    for layer, weight in weights.items():
        np.testing.assert_array_equal(found[layer], weight)
    names = [name for node in onnx.load(path).graph.node for name in node.input]
    assert [names.count(f"{layer}.weight") for layer in weights] == [1] * 12
    onnx.checker.check_model(path, full_check=True)
    batches = [token_batch()]
    found = parity.parity(parity.reference(model, parity.Texts(batches)), path)
    parity.check_parity(found, relative_error=1e-4, same_decision=1.0)


READERS = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[n, 2] x) => (float[n, 2] y)
<float[2, 2] w = {1, 2, 0, 4}>
{
    a = MatMul(x, w)
    b = MatMul(a, w)
    c = Sum(b, x)
    y = MatMul(c, w)
}
"""


@pytest.mark.parametrize(
    ("layers", "readers"),
    [(["one"], ["one"] * 3), (["one", "two"], ["one", "two", "two"]), (["a", "b", "c"], ["a", "b", "c"])],
)
def test_all_readers_of_a_shared_weight_read_one_matrix(tmp_path, layers, readers):
    """Three nodes and fewer layers: layers that share a matrix, or that have equal ones."""
    path, weight = tmp_path / "model.onnx", np.array([[1, 0], [2, 4]], np.float32)  # [out, in]
    onnx.save(onnx.parser.parse_model(READERS), path)
    weight_names.name_weights(path, dict.fromkeys(layers, weight))
    graph = onnx.load(path).graph
    assert [n.input[1] for n in graph.node if n.op_type == "MatMul"] == [f"{layer}.weight" for layer in readers]
    assert [t.name for t in graph.initializer] == [f"{layer}.weight" for layer in layers]
    assert inspect.matrix_zeros(path) == dict.fromkeys(layers, (1, 4))
    assert audit.Audit(path).kernels({"one": weight}) == {"one": "MatMul"}
    with pytest.raises(ExportError, match="the weight of d"):
        weight_names.name_weights(path, dict.fromkeys("abcd", weight))
