"""Sums of 8-bit products on processors without VNNI: found, and mended without changing a number."""

import platform

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from pruneonce.deployment import exact_sums, runtime
from pruneonce.doctor import machine
from tests.unit.test_execution import INPUTS, OUTPUTS, TEXTS, TOKENS, linear_model

X = np.random.default_rng(1).standard_normal((TEXTS, TOKENS, INPUTS)).astype(np.float32)


def evaluated(model: bytes) -> np.ndarray:
    """By onnx's own evaluator, which knows nothing of processors."""
    return ReferenceEvaluator(onnx.load_model_from_string(model)).run(None, {"x": X})[0]


def shared() -> bytes:
    """The linear model, in which a second product reads the same weight."""
    model = onnx.load_model_from_string(linear_model(0.5))
    again = [("DequantizeLinear", ["weight", "w_scale"], "w2"), ("MatMul", ["d", "w2"], "product2")]
    nodes = [helper.make_node(op, read, [made], **({"axis": 1} if made == "w2" else {})) for op, read, made in again]
    *before, last = model.graph.node
    last.input[:] = ["product", "product2"]
    del model.graph.node[:]
    model.graph.node.extend([*before, *nodes, last])
    return model.SerializeToString()


@pytest.mark.skipif(platform.machine() != "x86_64" or not machine.flags(), reason="the flags are those of x86-64 on Linux")
def test_sums_saturate_where_linux_names_no_vnni():
    assert exact_sums.saturates() == (not any("vnni" in flag for flag in machine.flags()))


@pytest.mark.parametrize("model", [linear_model(0.5), shared()], ids=["one product", "two products of one weight"])
def test_unsigned_weights_are_the_same_function(model):
    made = exact_sums.unsigned(model)
    onnx.checker.check_model(onnx.load_model_from_string(made), full_check=True)
    stored = {tensor.name: tensor for tensor in onnx.load_model_from_string(made).graph.initializer}
    assert stored["weight"].data_type == TensorProto.UINT8
    np.testing.assert_array_equal(evaluated(made), evaluated(model))
    found = runtime.session(made, threads=1).run(None, {"x": X})[0]
    np.testing.assert_allclose(found, evaluated(model), rtol=1e-5, atol=1e-5 * np.abs(found).max())


def test_a_model_that_cannot_saturate_stays_as_it_is(dense_onnx, monkeypatch):
    narrow = onnx.load_model_from_string(linear_model(0.5))
    (weight,) = [tensor for tensor in narrow.graph.initializer if tensor.name == "weight"]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) // 2, "weight"))
    monkeypatch.setattr(exact_sums, "saturates", lambda: True)
    for model in (narrow.SerializeToString(), dense_onnx.path):
        assert exact_sums.exact(model) is model


def with_a_zero_point(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.zeros(OUTPUTS, np.int8), "zero"))
    next(node for node in graph.node if list(node.output) == ["w"]).input.append("zero")


def with_another_reader(graph: onnx.GraphProto) -> None:
    graph.node.append(helper.make_node("Cast", ["weight"], ["as_float"], to=TensorProto.FLOAT))


def with_a_computed_scale(graph: onnx.GraphProto) -> None:
    graph.node.insert(0, helper.make_node("Identity", ["w_scale"], ["same"]))
    next(node for node in graph.node if list(node.output) == ["w"]).input[1] = "same"


@pytest.mark.parametrize("change", [with_a_zero_point, with_another_reader, with_a_computed_scale])
def test_a_weight_of_another_form_stays_as_it_is(change):
    model = onnx.load_model_from_string(linear_model(0.5))
    change(model.graph)
    assert exact_sums.unsigned(model.SerializeToString()) is None


def test_where_sums_are_exact_no_file_is_read(monkeypatch):
    monkeypatch.setattr(exact_sums, "saturates", lambda: False)
    assert exact_sums.exact(b"no model") == b"no model"
