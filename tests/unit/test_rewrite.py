"""Rewrites of small graphs: the same values to the last bit, fewer detours."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from pruneonce.deployment import audit, rewrite

NORMALISED = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[batch, length, 4] x, float[batch, length, 4] skip, float[4] bias)
    => (float[batch, length, 4] y, float[batch, length, 4] z)
<float[4] weight = {1, 2, 3, 4}>
{
    biased = Add(x, bias)
    total = Add(biased, skip)
    y = LayerNormalization <axis = -1> (total, weight)
    halved = Add(skip, bias)
    activated = Gelu(halved)
    z = Add(activated, halved)
}
"""
SPLIT = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[batch, length, 4] x) => (float[batch, length, 2, 2] y, float[n] flat)
<int64[1] two = {2}, int64[1] rest = {-1}>
{
    batch = Shape <start = 0, end = 1> (x)
    length = Shape <start = 1, end = 2> (x)
    shape = Concat <axis = 0> (batch, length, two, two)
    y = Reshape <allowzero = 1> (x, shape)
    flat = Reshape(x, rest)
}
"""


def rewritten(text: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    before = onnx.parser.parse_model(text)
    model = ir.serde.deserialize_model(before)
    rewrite.simplify(model)
    after = ir.serde.serialize_model(model)
    onnx.checker.check_model(after, full_check=True)
    return before, after


def outputs(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options).run(None, feeds)


def operators(model: onnx.ModelProto) -> Counter:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 5)])
def test_terms_become_one_sum_in_the_same_order(sizes):
    before, after = rewritten(NORMALISED)
    generator = np.random.default_rng(0)
    feeds = {name: generator.normal(size=(*sizes, 4)).astype(np.float32) for name in ("x", "skip")}
    feeds["bias"] = generator.normal(size=4).astype(np.float32)
    for wanted, found in zip(outputs(before, feeds), outputs(after, feeds), strict=True):
        np.testing.assert_array_equal(found, wanted)
    (total,) = [node for node in after.graph.node if node.op_type == "Sum"]
    assert list(total.input) == ["x", "bias", "skip"]


def test_a_sum_that_others_read_stays():
    _, after = rewritten(NORMALISED)
    assert operators(after) == {"Sum": 1, "LayerNormalization": 1, "Add": 2, "Gelu": 1}


@pytest.mark.parametrize("sizes", [(1, 1), (3, 5)])
def test_a_computed_shape_becomes_a_constant(sizes):
    before, after = rewritten(SPLIT)
    assert operators(after) == {"Reshape": 2}
    (shape,) = [t for t in after.graph.initializer if t.name == "shape_0_0_2_2"]
    assert onnx.numpy_helper.to_array(shape).tolist() == [0, 0, 2, 2]
    feeds = {"x": np.arange(np.prod((*sizes, 4)), dtype=np.float32).reshape(*sizes, 4)}
    for wanted, found in zip(outputs(before, feeds), outputs(after, feeds), strict=True):
        np.testing.assert_array_equal(found, wanted)


TABLE = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[batch, 2, 3] x) => (float[batch, 2, 3] y)
<float[1, 2, 3] table = {1, -2, 3, 0.5, 1, 2}, float scale = {0.02}, uint8 zero = {100},
 int8[3, 3] weight = {1, 2, 3, 4, 5, 6, 7, 8, 9}, float[3] scales = {0.1, 0.2, 0.3}, float[3] bias = {1, 2, 3},
 float[1, 2, 3] product, float[1, 2, 3] projected, float[3, 3] widened, float[batch, 2, 3] other>
{
    rounded = QuantizeLinear(table, scale, zero)
    read = DequantizeLinear(rounded, scale, zero)
    widened = DequantizeLinear <axis = 1> (weight, scales)
    product = MatMul(read, widened)
    projected = Add(product, bias)
    other = MatMul(x, widened)
    biased = Add(other, bias)
    y = Add(biased, projected)
}
"""


POOLER = """
<ir_version: 9, opset_import: ["" : 20]>
g (float[batch, 3] x) => (float[batch, 3] y)
<float scale = {0.02}, uint8 zero = {100}, int8[3, 3] weight = {1, 2, 3, 4, 5, 6, 7, 8, 9},
 float[3] scales = {0.1, 0.2, 0.3}, float[3] bias = {1, 2, 3}, float[batch, 3] product>
{
    rounded = QuantizeLinear(x, scale, zero)
    read = DequantizeLinear(rounded, scale, zero)
    widened = DequantizeLinear <axis = 1> (weight, scales)
    product = MatMul(read, widened)
    y = Add(product, bias)
}
"""


@pytest.mark.parametrize(("text", "sizes"), [(TABLE, (2, 2, 3)), (POOLER, (4, 3))], ids=["known axes", "two axes"])
def test_a_product_that_would_be_a_gemm_stays_on_integers(tmp_path, text, sizes):
    """ONNX Runtime would make a Gemm of it, in float."""
    before, after = rewritten(text)
    assert operators(after) == operators(before) + Counter(Sum=1) - Counter(Add=1)
    feeds = {"x": np.arange(12, dtype=np.float32).reshape(sizes)}
    for wanted, found in zip(outputs(before, feeds), outputs(after, feeds), strict=True):
        np.testing.assert_array_equal(found, wanted)
    kernels = []
    for model in (before, after):
        onnx.save(model, tmp_path / "model.onnx")
        kernels.append(operators(audit.optimised(tmp_path / "model.onnx")))
    assert kernels[0]["Gemm"] == 1
    assert kernels[1]["Gemm"] == 0
    assert kernels[1]["MatMulIntegerToFloat"] == 1
