"""ONNX files of a tiny BERT: the same function, the same zeros, the kernels that were asked for."""

import shutil
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from transformers import BertConfig

from pruneonce.deployment import embeddings, export, inspect, parity, runtime
from pruneonce.errors import ExportError, PatternBroken
from pruneonce.models import configuration
from pruneonce.sparsity import masks
from tests.conftest import PRUNABLE, random_classifier, token_batch

LAYER = "encoder.layer.0.attention.self.query"


@pytest.fixture(params=["dense", "int8"])
def exported(request):
    return request.getfixturevalue(f"{request.param}_onnx")


def test_parity(exported):
    batches = [token_batch(seed, rows, length) for seed, (rows, length) in enumerate([(4, 10), (1, 7), (9, 33)])]
    found = parity.parity(parity.logits(exported.model, batches), exported.path, batches)
    assert found["rows"] == 14
    assert found["same_decision"] == 1
    exact = exported.weights[LAYER].dtype == np.float32
    # int8: a value on the edge of two steps of a grid may fall to either side
    assert found["max_difference"] < (1e-5 if exact else 0.05) * found["max_logit"]
    parity.check_parity(found, max_difference=1e-4 if exact else 0.05, same_decision=1.0)


def test_parity_is_measured_not_assumed(dense_onnx):
    """Another model against the file: it must be told apart."""
    import copy

    other = copy.deepcopy(dense_onnx.model)
    with torch.no_grad():
        other.classifier.bias[0] += 0.5
    batches = [token_batch(0, 8, 12)]
    found = parity.parity(parity.logits(other, batches), dense_onnx.path, batches)
    assert found["max_difference"] == pytest.approx(0.5, abs=1e-4)
    with pytest.raises(ExportError, match="largest logit"):
        parity.check_parity(found, max_difference=1e-4, same_decision=0.0)


def test_a_logit_that_is_no_number_is_no_parity(dense_onnx):
    batches = [token_batch(0, 8, 12), token_batch(1, 8, 12)]
    trained = parity.logits(dense_onnx.model, batches)
    trained[0][3, 1] = np.nan
    found = parity.parity(trained, dense_onnx.path, batches, decide=lambda logits, batch: np.ones(len(logits)))
    with pytest.raises(ExportError, match="found a difference of nan"):
        parity.check_parity(found, max_difference=1e-4, same_decision=1.0)


def test_check_parity_wants_equal_decisions():
    found = {"max_difference": 0.0, "max_logit": 1.0, "same_decision": 0.97, "rows": 100}
    parity.check_parity(found, max_difference=0.1, same_decision=0.97)
    with pytest.raises(ExportError, match=r"97\.00% equal"):
        parity.check_parity(found, max_difference=0.1, same_decision=0.98)


@pytest.mark.parametrize("shape", [(1, 2), (1, 5), (3, 17), (2, 64)])
def test_batch_and_length_are_dynamic(exported, shape):
    running = runtime.session(exported.path, threads=1)
    found = runtime.logits(running, token_batch(1, *shape))
    assert found.shape == (shape[0], 3)
    assert np.isfinite(found).all()


def test_padding_changes_nothing(exported):
    running, text = runtime.session(exported.path, threads=1), token_batch(2, 1, 9)
    padded = {k: torch.nn.functional.pad(text[k], (0, 6)) for k in ("input_ids", "attention_mask")}
    np.testing.assert_allclose(runtime.logits(running, padded), runtime.logits(running, text), atol=1e-5)
    seen = padded | {"attention_mask": torch.ones_like(padded["attention_mask"])}
    assert np.abs(runtime.logits(running, seen) - runtime.logits(running, text)).max() > 1e-3


def test_one_file_with_two_inputs(exported):
    proto = onnx.load(exported.path)
    assert [i.name for i in proto.graph.input] == ["input_ids", "attention_mask"]
    assert [o.name for o in proto.graph.output] == ["logits"]
    assert len(list(exported.path.parent.iterdir())) == 1
    assert {t.data_location for t in proto.graph.initializer} == {onnx.TensorProto.DEFAULT}


def test_the_file_is_of_the_lowest_version_that_its_operators_allow(exported, tmp_path):
    """9 came with opset 20 in ONNX 1.15: ONNX Runtime 1.17 reads it, and refuses a 10, whatever stands in the file."""
    shutil.copy(exported.path, tmp_path / "model.onnx")
    embeddings.quantize(tmp_path / "model.onnx")
    for path in (exported.path, tmp_path / "model.onnx"):
        proto = onnx.load(path)
        assert (proto.ir_version, [(o.domain, o.version) for o in proto.opset_import]) == (9, [("", 20)])
    assert export.oldest_ir_version({"": 20}) == 9
    assert export.oldest_ir_version({"": 13}) == 7
    assert export.oldest_ir_version({"": 13, "ai.onnx.ml": 4}) == 9


def test_prunable_weights_are_found_by_name_as_trained(exported):
    found = inspect.prunable_weights(exported.path)
    assert set(found) == set(exported.weights)
    assert len(found) == 12
    for layer, weight in exported.weights.items():
        np.testing.assert_array_equal(found[layer], weight)
        assert found[layer].dtype == weight.dtype


def test_zeros_are_counted_in_the_file(int8_onnx):
    zeros = inspect.matrix_zeros(int8_onnx.path)
    for layer, weight in int8_onnx.weights.items():
        assert zeros[layer] == (int((weight == 0).sum()), weight.size)
        assert zeros[layer][0] >= round(0.8 * weight.size)


def test_a_zero_that_was_tampered_with_is_found(int8_onnx, tmp_path):
    inspect.check_zeros(int8_onnx.path, int8_onnx.pattern)
    path = tmp_path / "tampered.onnx"
    shutil.copy(int8_onnx.path, path)
    proto = onnx.load(path)
    tensor = next(t for t in proto.graph.initializer if t.name == f"{LAYER}.weight")
    weight = numpy_helper.to_array(tensor).copy()  # [in, out]
    row, column = np.argwhere(int8_onnx.pattern[LAYER].T)[0]
    weight[row, column] = 1
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    onnx.save(proto, path)
    with pytest.raises(PatternBroken, match=LAYER):
        inspect.check_zeros(path, int8_onnx.pattern)


def test_a_weight_that_the_file_does_not_hold_is_an_error(dense_onnx, tmp_path):
    path = tmp_path / "model.onnx"
    shutil.copy(dense_onnx.path, path)
    changed = dense_onnx.weights[LAYER].copy()
    changed[0, 0] = np.nextafter(changed[0, 0], 1)
    with pytest.raises(ExportError, match=LAYER):
        export.name_weights(path, {LAYER: changed})


def test_layers_with_equal_weights_keep_their_names(tmp_path):
    model = random_classifier()
    layers = masks.prunable(model, PRUNABLE)
    with torch.no_grad():
        for layer in list(layers)[:3]:  # query, key, value: all zero, say
            layers[layer].weight.zero_()
    weights = {name: m.weight.detach().numpy() for name, m in layers.items()}
    path = tmp_path / "model.onnx"
    export.to_onnx(model, path)
    export.name_weights(path, weights)
    found = inspect.prunable_weights(path)
    assert sorted(found) == sorted(weights)
    for layer, weight in weights.items():
        np.testing.assert_array_equal(found[layer], weight)
    names = [name for node in onnx.load(path).graph.node for name in node.input]
    assert [names.count(f"{layer}.weight") for layer in weights] == [1] * 12
    onnx.checker.check_model(path, full_check=True)
    batches = [token_batch()]
    found = parity.parity(parity.logits(model, batches), path, batches)
    parity.check_parity(found, max_difference=1e-4, same_decision=1.0)


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
    export.name_weights(path, dict.fromkeys(layers, weight))
    graph = onnx.load(path).graph
    assert [n.input[1] for n in graph.node if n.op_type == "MatMul"] == [f"{layer}.weight" for layer in readers]
    assert [t.name for t in graph.initializer] == [f"{layer}.weight" for layer in layers]
    assert inspect.matrix_zeros(path) == dict.fromkeys(layers, (1, 4))
    assert inspect.Audit(path).kernels({"one": weight}) == {"one": "MatMul"}
    with pytest.raises(ExportError, match="the weight of d"):
        export.name_weights(path, dict.fromkeys("abcd", weight))


def test_a_weight_with_readers_of_two_kinds_names_both(tmp_path):
    path, weight = tmp_path / "model.onnx", np.array([[1, 0], [2, 4]], np.float32)
    onnx.save(onnx.parser.parse_model(READERS.replace("Sum(b, x)", "Mul(b, w)").replace("n, 2", "2, 2")), path)
    kernels = inspect.Audit(path).kernels({"one": weight})
    assert kernels == {"one": "MatMul + Mul"}
    with pytest.raises(ExportError, match="MatMul"):
        inspect.check_integer(kernels)


class Refuses(torch.nn.Module):
    """A model that takes a mask of two axes only, and whose positions begin behind that of padding."""

    def __init__(self):
        super().__init__()
        self.config = BertConfig(vocab_size=10, max_position_embeddings=12)
        self.position_embeddings = torch.nn.Embedding(12, 2, padding_idx=1)

    def forward(self, input_ids, attention_mask):
        if attention_mask.dim() != 2:
            raise ValueError("wrong shape for attention_mask")
        return (self.position_embeddings(input_ids * attention_mask),)


def test_a_model_that_refuses_a_ready_mask_gets_the_one_it_knows(classifier):
    assert not export.takes_added_mask(Refuses())
    assert configuration.longest(Refuses()) == 10
    assert export.takes_added_mask(classifier)
    assert configuration.longest(classifier) == 64


def test_the_file_is_plain_onnx_without_detours(exported):
    onnx.checker.check_model(exported.path, full_check=True)
    proto = onnx.load(exported.path)
    assert {o.domain for o in proto.opset_import} == {""}
    count = Counter(node.op_type for node in proto.graph.node)
    layers, constants = 2, {t.name for t in proto.graph.initializer}
    assert count["Reshape"] == count["Transpose"] == 4 * layers
    assert all(node.input[1] in constants for node in proto.graph.node if node.op_type == "Reshape")
    assert count["LayerNormalization"] == 2 * layers + 1
    assert count["Sum"] == count["LayerNormalization"] + layers  # what normalisations and Gelus read
    assert count["Softmax"] == count["Gelu"] == layers
    assert count["Gather"] <= 4  # words, positions, the first token for the pooler
    assert not {"Expand", "Where", "IsNaN", "GatherElements", "ConstantOfShape", "Concat"} & set(count)
    # query, key and value read one tensor through one QuantizeLinear
    quantizers = 4 * layers if exported.weights[LAYER].dtype == np.int8 else 0
    assert count["QuantizeLinear"] == quantizers


def test_onnx_runtime_takes_the_faster_kernels(exported):
    kernels = inspect.Audit(exported.path).operators()
    assert kernels["LayerNormalization"] == 5
    assert kernels["Gelu"] == 2
    assert not {"SkipLayerNormalization", "BiasGelu"} & set(kernels)
    integers = kernels.get("MatMulIntegerToFloat", 0)
    assert integers == (12 if exported.weights[LAYER].dtype == np.int8 else 0)


def test_query_key_and_value_have_one_grid(int8_onnx):
    layer = int8_onnx.model.bert.encoder.layer[0].attention.self
    assert layer.query.scale == layer.key.scale == layer.value.scale
    assert layer.query.zero_point == layer.key.zero_point == layer.value.zero_point


def test_int8_runs_on_integers_and_only_the_head_in_float(int8_onnx):
    audit = inspect.Audit(int8_onnx.path)
    kernels = audit.kernels(int8_onnx.weights)
    assert len(kernels) == 12
    assert set(kernels.values()) == {"MatMulIntegerToFloat"}
    inspect.check_integer(kernels)
    assert len(audit.float_products()) == 2  # pooler and classifier


def test_a_float_layer_does_not_pass_for_an_integer_one(dense_onnx):
    audit = inspect.Audit(dense_onnx.path)
    kernels = audit.kernels(dense_onnx.weights)
    assert len(audit.float_products()) == 14
    with pytest.raises(ExportError, match=LAYER):
        inspect.check_integer(kernels)


@pytest.mark.parametrize("kernel", ["MatMul", "Gemm", "FusedMatMul", "MatMulNBits", "not found"])
def test_check_integer_names_the_layer(kernel):
    with pytest.raises(ExportError, match=f"'b': '{kernel}'"):
        inspect.check_integer({"a": "MatMulIntegerToFloat", "b": kernel})


def test_a_weight_of_another_model_is_not_found(int8_onnx):
    other = {"x": np.ones((3, 4), np.int8)}
    assert inspect.Audit(int8_onnx.path).kernels(other) == {"x": "not found"}
