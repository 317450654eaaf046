"""The matrices of an ONNX file, against a graph written by hand and patterns that are made, not found."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pruneonce.deployment import embeddings, layers, provenance
from pruneonce.errors import PackError

RNG = np.random.default_rng(0)


def kept(pattern: str, shape: tuple[int, int], share: float) -> np.ndarray:
    """bool[outputs, inputs]: which weights stay. share: of zeros."""
    outputs, inputs = shape
    if pattern == "unstructured":
        return RNG.random(shape) >= share
    if "x" in pattern:
        rows, columns = map(int, pattern.split("x"))
        return np.kron(RNG.random((outputs // rows, inputs // columns)) >= share, np.ones((rows, columns), bool))
    most, group = map(int, pattern.split(":"))
    order = RNG.random((outputs, inputs // group, group)).argsort(-1).argsort(-1)
    return (order < most).reshape(shape)


@pytest.mark.parametrize("rounded", [0.0, 0.04], ids=["float", "int8"])
@pytest.mark.parametrize(
    ("pattern", "shares"),
    [
        ("unstructured", (0.3, 0.5, 0.85, 0.95)),
        ("1x4", (0.3, 0.5, 0.85, 0.95)),
        ("4x1", (0.3, 0.5, 0.85, 0.95)),
        ("2:4", (0.5,)),
        ("4:8", (0.5,)),
    ],
)
def test_a_pattern_is_found_again_also_where_int8_rounds_more_weights_to_zero(pattern, shares, rounded):
    for share in shares:
        zero = ~kept(pattern, (96, 128), share) | (RNG.random((96, 128)) < rounded)
        assert layers.held(zero, least=0.1 if rounded else 0.0) == pattern, share


@pytest.mark.parametrize(("least", "found"), [(0.0, "unstructured"), (0.1, "dense")])
def test_a_few_zeros_by_rounding_are_no_pattern(least, found):
    zero = RNG.random((96, 128)) < 0.03
    assert layers.held(zero, least=least) == found
    assert layers.held(np.zeros((3, 5), bool), least=least) == "dense"
    assert layers.held(np.zeros((0, 5), bool), least=least) == "dense"


def test_a_matrix_that_cannot_be_divided_is_unstructured():
    zero = np.zeros((3, 5), bool)
    zero[:, :3] = True
    assert layers.held(zero, least=0.0) == "unstructured"


def model(about: object = None) -> bytes:
    """A graph of every way in which a matrix is read."""
    weights = {
        "words.weight": np.arange(30, dtype=np.float32).reshape(10, 3),  # looked up
        "a.weight": np.eye(3, 4, dtype=np.int8),  # [in, out], dequantized
        "scale": np.ones(4, np.float32),
        "b.weight": np.ones((2, 4), np.float32),  # [out, in], by transB
        "c.weight": np.ones((2, 2), np.float32),  # [in, out], as the metadata says
        "bias": np.zeros(2, np.float32),
        "indices": np.zeros((1, 7), np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["words.weight", "ids"], ["x"]),
        helper.make_node("DequantizeLinear", ["a.weight", "scale"], ["a"], axis=1),
        helper.make_node("MatMul", ["x", "a"], ["y"]),
        helper.make_node("Gemm", ["y", "b.weight", "bias"], ["z"], transB=1),
        helper.make_node("MatMul", ["z", "c.weight"], ["out"]),
        helper.make_node("Linear", ["out"], ["more"], domain="pruneonce"),
    ]
    made = [numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, [1])]
    proto = helper.make_model(helper.make_graph(nodes, "g", inputs, [], initializer=made))
    said = {"pruneonce.prunable": json.dumps({"a": "in,out", "c": "in,out"})}
    helper.set_model_props(proto, said | ({} if about is None else {provenance.ABOUT: str(about)}))
    return proto.SerializeToString()


def test_the_scales_of_an_int8_table_are_no_parameters(tmp_path):
    """They are read by a Mul, behind the look-up."""
    (tmp_path / "a.onnx").write_bytes(model())
    float_ = layers.content(tmp_path / "a.onnx")
    assert list(embeddings.quantize(tmp_path / "a.onnx")) == ["words.weight"]
    int8 = layers.content(tmp_path / "a.onnx")
    assert int8.parameters == float_.parameters
    assert int8.layers[0].bits == 8


def test_each_matrix_is_described_once():
    found = layers.content(model())
    assert [(x.name, x.role, x.outputs, x.inputs, x.bits, x.bytes, x.prunable) for x in found.layers] == [
        ("words", "embedding", 10, 3, 32, 120, False),
        ("a", "linear", 4, 3, 8, 12, True),
        ("b", "linear", 2, 4, 32, 32, False),
        ("c", "linear", 2, 2, 32, 16, True),
    ]
    assert found.layers[1].zeros == 0.75
    assert found.parameters == 30 + 12 + 8 + 4 + 2, "no scale, no index"
    assert found.operators == 1


@pytest.mark.parametrize(
    ("about", "found"),
    [(None, None), ('{"task": "r8"}', {"task": "r8"}), ("[1]", None), ("{", None), ("[" * 10**5, None), ("", None)],
    ids=["none", "whole", "list", "cut", "deep", "empty"],
)
def test_what_a_file_says_of_itself_is_a_mapping_or_nothing(about, found):
    assert layers.content(model(about)).about == found


def test_what_is_no_model_is_one_line(tmp_path):
    (tmp_path / "text.onnx").write_text("hello\n")
    for given in (tmp_path / "text.onnx", b"hello\n"):
        with pytest.raises(PackError, match=r"^expected an ONNX file, found: .* Get the file again\.$"):
            layers.content(given)
    assert layers.content(onnx.ModelProto().SerializeToString()).layers == []


@pytest.mark.parametrize("lacks", ["input", "output"])
def test_a_node_without_ends_names_no_matrix(lacks):
    """As a damaged file may have one."""
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["d"]), helper.make_node("MatMul", ["x", "d"], ["y"])]
    del getattr(nodes[0], lacks)[:]
    graph = helper.make_graph(nodes, "g", [], [], [numpy_helper.from_array(np.ones((4, 4), np.int8), "w")])
    assert layers.content(helper.make_model(graph).SerializeToString()).layers == []
