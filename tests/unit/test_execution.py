"""Which matrix runs by which kernel, and sessions that run so."""

import logging
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from pruneonce.deployment import accelerate, execution
from pruneonce.deployment.linears import linears
from pruneonce.deployment.sparse_form import sparse_form
from pruneonce.errors import KernelsError, PackError

TEXTS, TOKENS, INPUTS, OUTPUTS = 2, 5, 64, 96


def linear_model(density: float, *, outputs: int = OUTPUTS, inputs: int = INPUTS) -> bytes:
    """x float[texts, tokens, inputs] -> y float[texts, tokens, outputs], by one int8 linear with a bias."""
    draw = np.random.default_rng(0)
    weight = draw.integers(-127, 128, (inputs, outputs), np.int8)
    weight[draw.random(weight.shape) >= density] = 0
    arrays = {
        "x_scale": np.float32(0.02),
        "x_zero": np.uint8(120),
        "weight": weight,
        "w_scale": draw.random(outputs, np.float32) / 100 + 0.001,
        "bias": draw.standard_normal(outputs).astype(np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "x_scale", "x_zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["weight", "w_scale"], ["w"], axis=1),
        helper.make_node("MatMul", ["d", "w"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["texts", "tokens", inputs])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["texts", "tokens", outputs])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return model.SerializeToString()


def planned(model: bytes, *, how: str = "auto", processor: str | None = "avx2") -> execution.Matrix:
    """How the one matrix of the model runs, with one thread."""
    found = linears(execution._read(model).graph)
    (matrix,) = execution.plan(found, execution=how, threads=1, processor=processor)
    return matrix


def test_the_one_linear_gives_the_same_numbers():
    x = np.random.default_rng(1).standard_normal((TEXTS, TOKENS, INPUTS)).astype(np.float32)
    model = linear_model(0.15)
    stock, sparse = (
        execution.session(model, threads=1, execution=name).run(None, {"x": x})[0] for name in ("stock", "sparse")
    )
    np.testing.assert_allclose(sparse, stock, rtol=1e-6, atol=1e-6)
    assert np.abs(stock).max() > 1


@pytest.mark.parametrize("how", ["stock", "sparse"])
def test_sums_of_large_products_are_exact_on_every_processor(how):
    """Two products of 255 and a weight above 64 do not fit into the 16 bits of processors without VNNI."""
    model = linear_model(1.0)
    x = np.full((TEXTS, TOKENS, INPUTS), 100, np.float32)
    x[..., ::3] = -100  # 0 on the grid
    (expected,) = ReferenceEvaluator(onnx.load_model_from_string(model)).run(None, {"x": x})
    found = execution.session(model, threads=1, execution=how).run(None, {"x": x})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_the_output_keeps_its_name():
    model = onnx.load_model_from_string(execution.accelerated(linear_model(0.15), execution="sparse", threads=1))
    assert [node.op_type for node in model.graph.node] == ["Tile", "Quantize", "SparseLinear", "Untile"]
    assert [output.name for output in model.graph.output] == ["y"]
    assert "weight" not in [tensor.name for tensor in model.graph.initializer], "its sparse form takes its place"


def test_auto_chooses_by_the_costs_of_this_processor():
    """tests/unit/test_costs.py has the choice itself."""
    few = planned(linear_model(0.03, outputs=768, inputs=768))
    assert (few.kernel, few.why.split()[1:]) == ("sparse", ["cycles,", "stock", "20,582"])
    many = planned(linear_model(1.0))
    assert (many.kernel, many.why) == ("stock", "more than 60% of its words are stored")


@pytest.mark.parametrize(
    ("processor", "why"),
    [
        (None, "the library of the sparse kernels is not there"),
        ("portable", "no cost was measured on a processor of the kind portable"),
    ],
)
def test_elsewhere_onnx_runtime_runs_all(processor, why):
    matrix = planned(linear_model(0.03), processor=processor)
    assert (matrix.kernel, matrix.why) == ("stock", why)


def test_what_is_asked_for_is_taken():
    for name in ("stock", "sparse"):
        matrix = planned(linear_model(1.0), how=name)
        assert (matrix.kernel, matrix.why) == (name, "as asked for")
    assert (matrix.outputs, matrix.inputs) == (OUTPUTS, INPUTS)


def test_another_execution_is_refused():
    with pytest.raises(KernelsError, match="expected an execution of auto, stock, sparse, found 'fast'"):
        execution.session(linear_model(0.1), threads=1, execution="fast")


def test_without_the_library_a_model_runs_and_one_line_says_so(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(execution, "LIBRARY", tmp_path / "kernels.so")
    with caplog.at_level(logging.WARNING, "pruneonce"):
        session = execution.session(linear_model(0.1), threads=1, execution="auto")
    assert session.run(None, {"x": np.zeros((1, 1, INPUTS), np.float32)})[0].shape == (1, 1, OUTPUTS)
    (line,) = caplog.messages
    assert line.startswith(f"The library of the sparse kernels is not at {tmp_path / 'kernels.so'}: zeros save no time.")
    with pytest.raises(KernelsError, match="expected the library of the sparse kernels"):
        execution.session(linear_model(0.1), threads=1, execution="sparse")


def test_a_library_that_cannot_be_loaded_is_as_good_as_none(monkeypatch, tmp_path):
    damaged = tmp_path / "kernels.so"
    damaged.write_bytes(b"\x7fELF and no more")
    monkeypatch.setattr(execution, "LIBRARY", damaged)
    assert execution.processor() is None


def test_what_is_no_model_is_refused():
    with pytest.raises(PackError, match="expected a model that ONNX Runtime"):
        execution.session(b"no model", threads=1, execution="sparse")


@pytest.mark.parametrize(
    ("path", "found"), [("mmx", "mmx"), ("", ""), ("a" + 60 * "é", "a" + 78 * r"\?"), ("x" * 500, "x" * 79)]
)
def test_a_path_that_this_processor_does_not_run_is_refused(monkeypatch, path, found):
    monkeypatch.setenv("PRUNEONCE_PATH", path)
    with pytest.raises(
        KernelsError,
        match=rf"PRUNEONCE_PATH: expected a path that this processor runs \(.*portable\), found '{found}'\. Unset it, and",
    ):
        execution.session(linear_model(0.1), threads=1, execution="sparse")


def changed(change: Callable[[onnx.GraphProto], object]) -> bytes:
    model = onnx.load_model_from_string(linear_model(0.15, outputs=INPUTS))
    change(model.graph)
    return model.SerializeToString()


def scale_of_each_input(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if list(node.output) == ["w"]).attribute[0].i = 0


def other_scale(graph: onnx.GraphProto, value: float) -> None:
    """The activations are dequantized by another initializer than that which quantized them."""
    next(node for node in graph.node if list(node.output) == ["d"]).input[1] = "other"
    graph.initializer.append(numpy_helper.from_array(np.float32(value), "other"))


@pytest.mark.parametrize(
    ("change", "kernel"),
    [
        (scale_of_each_input, "stock"),
        (lambda graph: other_scale(graph, 0.5), "stock"),
        (lambda graph: other_scale(graph, 0.02), "sparse"),
    ],
    ids=["a scale of each input", "another scale", "the same scale by another name"],
)
def test_a_linear_that_the_kernel_would_compute_otherwise_is_left_to_onnx_runtime(change, kernel):
    model = changed(change)
    assert (execution.accelerated(model, execution="sparse", threads=1) is None) == (kernel == "stock")
    x = np.random.default_rng(1).standard_normal((TEXTS, TOKENS, INPUTS)).astype(np.float32)
    stock, sparse = (
        execution.session(model, threads=1, execution=name).run(None, {"x": x})[0] for name in ("stock", "sparse")
    )
    np.testing.assert_allclose(sparse, stock, rtol=1e-6, atol=1e-6)


def test_a_file_that_was_accelerated_in_part_can_be_accelerated_further(int8_onnx):
    """As one that was written for another processor, or for another number of threads."""
    model = execution._read(int8_onnx.path)
    accelerate.rewrite(model, list(linears(model.graph))[::2], form=sparse_form)
    part = ir.to_proto(model).SerializeToString()
    whole = execution.accelerated(part, execution="sparse", threads=1)
    feeds = {name: np.full((2, 9), 1) for name in ("input_ids", "attention_mask")}
    first, stock = (
        execution.session(of, threads=1, execution=how).run(None, feeds)[0]
        for of, how in ((part, "sparse"), (int8_onnx.path, "stock"))
    )
    assert not list(linears(execution._read(whole).graph))
    np.testing.assert_allclose(first, stock, atol=0.05 * np.abs(stock).max())


@pytest.mark.parametrize("how", ["auto", "sparse"])
def test_a_product_of_one_input_is_one_error(how):
    model = onnx.load_model_from_string(linear_model(0.15))
    del next(node for node in model.graph.node if node.op_type == "MatMul").input[1:]
    with pytest.raises(PackError, match=r"expected a model that ONNX Runtime .* loads, found"):
        execution.session(model.SerializeToString(), threads=1, execution=how)


def test_a_graph_that_cannot_be_written_again_is_one_error():
    """A type that onnx-ir keeps as it is, and knows only when it writes it."""
    model = onnx.load_model_from_string(linear_model(0.15))
    model.graph.initializer[2].dims[:] = [INPUTS, OUTPUTS, 2]
    for ask in (execution.accelerated, execution.matrices):
        with pytest.raises(PackError, match=r"expected a model that ONNX Runtime .* loads, found"):
            ask(model.SerializeToString(), execution="sparse", threads=1)


def test_attention_over_another_axis_than_the_keys_is_left_to_onnx_runtime(int8_onnx):
    model = onnx.load(int8_onnx.path)
    softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
    for axis, found in ((-1, len(softmaxes)), (3, len(softmaxes)), (2, 0)):
        for node in softmaxes:
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("axis", axis))
        made = onnx.load_model_from_string(execution.accelerated(model.SerializeToString(), execution="sparse", threads=1))
        assert [node.op_type for node in made.graph.node].count("Attention") == found
    assert softmaxes
