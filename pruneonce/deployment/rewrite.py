"""Rewrite the exported graph so that ONNX Runtime takes its faster kernels. Plain ONNX, and no value changes.

ONNX Runtime 1.32 fuses `Add` with a following normalisation or Gelu, to SkipLayerNormalization and BiasGelu. Their CPU
kernels are slower than the nodes they replace. It does not fuse `Sum`, the same function of any number of terms.

The bias of an int8 product stays a node of its own. The kernel MatMulIntegerToFloat takes a bias, but no QDQ form that
was tried leads to it. Measured times: docs/design-notes.md.
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
    """Give every Reshape a constant shape instead of a computed one: 0 copies the axis of the input."""
    shapes: dict[tuple[int, ...], ir.Value] = {}
    for node in graph:
        if node.op_type != "Reshape" or node.inputs[0] is None:
            continue
        before, after = node.inputs[0].shape or (), node.outputs[0].shape or ()
        sizes = [_size(size, before[i] if i < len(before) else None) for i, size in enumerate(after)]
        known = tuple(size for size in sizes if size is not None)
        if known and len(known) == len(sizes):
            if known not in shapes:
                shapes[known] = _constant(graph, "shape_" + "_".join(map(str, known)), np.array(known, np.int64))
            node.replace_input_with(1, shapes[known])
            node.attributes.pop("allowzero", None)


def _size(after: int | ir.SymbolicDim, before: int | ir.SymbolicDim | None) -> int | None:
    """An entry of a constant shape: a known size, 0 for that of the input's axis, None for any other."""
    if isinstance(after, int):
        return after
    return 0 if after.value is not None and after == before else None


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value


def _sum_terms(graph: ir.Graph) -> None:
    """Replace the Adds before a LayerNormalization or a Gelu by one Sum of all terms, in the same order."""
    for node in list(graph):
        total = node.inputs[0].producer() if node.op_type in ("LayerNormalization", "Gelu") and node.inputs[0] else None
        if total is not None and total.op_type == "Add" and len(total.outputs[0].uses()) == 1:
            joined = ir.node("Sum", _terms(total))
            joined.outputs[0].shape, joined.outputs[0].type = total.outputs[0].shape, total.outputs[0].type
            graph.insert_before(node, joined)
            node.replace_input_with(0, joined.outputs[0])


def _sum_biases(graph: ir.Graph) -> None:
    """Add the bias of an int8 product by a Sum if the product has two axes, or only known axes.

    ONNX Runtime would fuse its MatMul and Add to a Gemm, for which it has no integer kernel. Such products are a pooler's,
    and those with DeBERTa's tables of relative positions, which depend on no input.
    """
    for node in graph:
        product = next((i.producer() for i in node.inputs if i and i.producer()), None) if node.op_type == "Add" else None
        if product is None or product.op_type != "MatMul" or not _is_dequantized(product.inputs[1]):
            continue
        shape = product.outputs[0].shape
        if shape is not None and (len(shape) == 2 or shape.is_static()):
            node.op_type = "Sum"


def _is_dequantized(value: ir.Value | None) -> bool:
    producer = value.producer() if value else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def _terms(add: ir.Node) -> list[ir.Value]:
    """The terms of a sum, a + b + c -> [a, b, c]. A partial sum that another node reads is one term."""
    terms: list[ir.Value] = []
    for value in add.inputs:
        assert value is not None  # an Add has two inputs
        inner = value.producer()
        if inner is not None and inner.op_type == "Add" and len(value.uses()) == 1:
            terms += _terms(inner)
        else:
            terms.append(value)
    return terms
