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
    _free_names(model.graph)


def _free_names(graph: ir.Graph) -> None:
    """Rename each inner value with the name of an output: the exporter calls a look-up `embedding`, as a task may too."""
    taken = {value.name for value in graph.outputs}
    for value in (value for node in graph for value in node.outputs):
        if value.name in taken and not value.is_graph_output():
            value.name = f"inner_{value.name}"


def _fix_shapes(graph: ir.Graph) -> None:
    """Give every Reshape a constant shape instead of a computed one: 0 copies the axis of the input."""
    for node in graph:
        if node.op_type != "Reshape" or node.inputs[0] is None:
            continue
        before, after = node.inputs[0].shape or (), node.outputs[0].shape or ()
        sizes = [_size(size, before[i] if i < len(before) else None) for i, size in enumerate(after)]
        known = tuple(size for size in sizes if size is not None)
        if known and len(known) == len(sizes):
            name = "shape_" + "_".join(map(str, known))
            if name not in graph.initializers:
                graph.register_initializer(ir.val(name, const_value=ir.tensor(np.array(known, np.int64), name=name)))
            node.replace_input_with(1, graph.initializers[name])
            node.attributes.pop("allowzero", None)


def _size(after: int | ir.SymbolicDim, before: int | ir.SymbolicDim | None) -> int | None:
    """An entry of a constant shape: a known size, 0 for that of the input's axis, None for any other."""
    if isinstance(after, int):
        return after
    return 0 if after.value is not None and after == before else None


def _sum_terms(graph: ir.Graph) -> None:
    """Replace the Adds before a LayerNormalization or a Gelu by one Sum of all terms, in the same order."""
    for node in list(graph):
        total = _producer(node.inputs[0], "Add") if node.op_type in ("LayerNormalization", "Gelu") else None
        if total and len(total.outputs[0].uses()) == 1:
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
        if product and product.op_type == "MatMul" and _producer(product.inputs[1], "DequantizeLinear"):
            shape = product.outputs[0].shape
            if shape is not None and (len(shape) == 2 or shape.is_static()):
                node.op_type = "Sum"


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that computes the value, if it is of this type."""
    node = value.producer() if value else None
    return node if node and node.op_type == op_type else None


def _terms(add: ir.Node) -> list[ir.Value]:
    """The terms of a sum, a + b + c -> [a, b, c]. A partial sum that another node reads is one term."""
    terms: list[ir.Value] = []
    for value in add.inputs:
        assert value is not None  # an Add has two inputs
        inner = _producer(value, "Add")
        terms += _terms(inner) if inner and len(value.uses()) == 1 else [value]
    return terms
