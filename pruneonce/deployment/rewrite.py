"""The exported graph without detours, written so that ONNX Runtime takes its faster kernels. No value changes.

Plain ONNX in, plain ONNX out. ONNX Runtime 1.32 fuses `Add` before a normalisation or a Gelu into SkipLayerNormalization
and BiasGelu, whose CPU kernels are slower than what they replace: 132 µs against 42 µs, and 147 µs against 95 µs, for
128 x 384 and 128 x 1536 values on 2 threads. It does not fuse `Sum`, the same function of any number of terms.

What stays is the bias of an int8 product, an addition of its own: 2-4 % of a call. MatMulIntegerToFloat takes a bias, but no
QDQ form that was tried leads to that, nor does MatMulInteger with constant scales. QGemm takes one, in int32, for little:
428 µs against 418 of product and Add for 128 x 768 x 768 on one thread, 1646 against 1750 for 128 x 768 x 3072, and its two
axes need a Reshape before and behind.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


def simplify(model: ir.Model) -> None:
    """Rewrite `model` in place."""
    _fix_shapes(model.graph)
    _sum_terms(model.graph)
    _sum_biases(model.graph)
    RemoveUnusedNodesPass()(model)


def _fix_shapes(graph: ir.Graph) -> None:
    """A Reshape to a shape that is computed at run time becomes one to constants: 0 copies the axis of the input."""
    made: dict[tuple[int, ...], ir.Value] = {}
    for node in graph:
        if node.op_type != "Reshape" or node.inputs[0] is None:
            continue
        given, wanted = node.inputs[0].shape or (), node.outputs[0].shape or ()
        sizes = [_size(size, given[i] if i < len(given) else None) for i, size in enumerate(wanted)]
        known = tuple(size for size in sizes if size is not None)
        if known and len(known) == len(sizes):
            if known not in made:
                made[known] = _constant(graph, "shape_" + "_".join(map(str, known)), np.array(known, np.int64))
            node.replace_input_with(1, made[known])
            node.attributes.pop("allowzero", None)


def _size(wanted: int | ir.SymbolicDim, given: int | ir.SymbolicDim | None) -> int | None:
    """An entry of a constant shape: a number, 0 for the same unknown as the input's axis, None where neither will do."""
    if isinstance(wanted, int):
        return wanted
    return 0 if wanted.value is not None and wanted == given else None


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value


def _sum_terms(graph: ir.Graph) -> None:
    """What a LayerNormalization or a Gelu reads, if it is added up, becomes one Sum of all terms, in the same order."""
    for node in list(graph):
        total = node.inputs[0].producer() if node.op_type in ("LayerNormalization", "Gelu") and node.inputs[0] else None
        if total is not None and total.op_type == "Add" and len(total.outputs[0].uses()) == 1:
            one = ir.node("Sum", _terms(total))
            one.outputs[0].shape, one.outputs[0].type = total.outputs[0].shape, total.outputs[0].type
            graph.insert_before(node, one)
            node.replace_input_with(0, one.outputs[0])


def _sum_biases(graph: ir.Graph) -> None:
    """The bias of an int8 product that has two axes, or axes all known, is added by a Sum.

    Of a MatMul and an Add of such shapes ONNX Runtime makes a Gemm first, which it then has no integer kernel for.
    They are a pooler's, and the products with tables of relative positions (DeBERTa), which hang on no input.
    """
    for node in graph:
        product = next((i.producer() for i in node.inputs if i and i.producer()), None) if node.op_type == "Add" else None
        if product is None or product.op_type != "MatMul" or not _is_dequantized(product.inputs[1]):
            continue
        shape = product.outputs[0].shape
        if shape is not None and (len(shape) == 2 or shape.is_static()):
            node.op_type = "Sum"


def _is_dequantized(value: ir.Value | None) -> bool:
    maker = value.producer() if value else None
    return maker is not None and maker.op_type == "DequantizeLinear"


def _terms(add: ir.Node) -> list[ir.Value]:
    """a + b + c -> [a, b, c], through sums that nobody else reads."""
    terms: list[ir.Value] = []
    for value in add.inputs:
        assert value is not None  # an Add has two inputs
        inner = value.producer()
        own = inner is not None and inner.op_type == "Add" and len(value.uses()) == 1
        terms += _terms(inner) if inner is not None and own else [value]
    return terms
