"""Rewrite an int8 graph for the sparse kernels: plain ONNX in, nodes of the domain "pruneonce" out. kernels/operators.c.

Chosen linears become SparseLinear. Their activations stay in the kernels' layout, in tiles. So what lies between two of them
is rewritten as well, where it has a form that `linears` finds. Elsewhere Tile and Untile convert.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pruneonce.deployment.linears import Attention, Linear, Matches
from pruneonce.deployment.sparse_form import SparseForm

DOMAIN = "pruneonce"


def rewrite(model: ir.Model, chosen: Iterable[Linear], *, form: Callable[[np.ndarray], SparseForm]) -> None:
    """Rewrite these linears of the model, and what lies between them, in place.

    form: int8[out, in] -> its sparse form.
    """
    _Rewriting(model.graph, chosen, form).run()
    model.opset_imports[DOMAIN] = 1
    model.graph.sort()  # first: unused nodes are found from the end
    RemoveUnusedNodesPass()(model)


class _Rewriting:
    def __init__(self, graph: ir.Graph, chosen: Iterable[Linear], form: Callable[[np.ndarray], SparseForm]):
        self.graph, self.form = graph, form
        self.found = Matches(graph, chosen)
        self.tiles: dict[ir.Value, ir.Value] = {}  # value -> the same in tiles
        self.like: dict[ir.Value, ir.Value] = {}  # in tiles -> a value whose leading axes are the tokens
        self.forms: dict[tuple[ir.Value, ...], list[ir.Value]] = {}
        self.names = (f"{DOMAIN}.{number}" for number in itertools.count())  # of initializers
        self.words: dict[tuple[ir.Value, float, int], ir.Value] = {}  # (in tiles, scale, zero point) -> uint8 in tiles

    def run(self) -> None:
        inside = {part.out for attention in self.found.attentions.values() for part in attention.parts}
        for value in [output for node in self.graph for output in node.outputs]:
            if value not in inside and not self.found.is_absorbed(value) and self.found.is_computed(value):
                self.tiled(value)
        for value, tiles in self.tiles.items():
            if tiles.producer().op_type != "Tile":  # type: ignore[union-attr]
                plain = self._node("Untile", [tiles, self.like[tiles]], [ir.DataType.FLOAT]).outputs[0]
                plain.shape, plain.type = value.shape, value.type
                if value.is_graph_output():  # whose name is part of the model
                    value.name, plain.name = f"{value.name}.before", value.name
                value.replace_all_uses_with(plain, replace_graph_outputs=True)

    def tiled(self, value: ir.Value) -> ir.Value:
        """The value in tiles; memoized."""
        if value not in self.tiles:
            self.tiles[value] = self._tiled(value)
        return self.tiles[value]

    def _tiled(self, value: ir.Value) -> ir.Value:
        if attention := self.found.attentions.get(value):
            return self._attend(attention)
        if terms := self.found.terms(value):
            return self._normalize(value, *terms)
        if activated := self.found.activation(value):
            return self._multiply([activated[0]], activation=activated[1])
        if linear := self.found.linears.get(value):
            return self._multiply([linear])
        made = self._node("Tile", [value], [ir.DataType.FLOAT]).outputs[0]
        self.like[made] = value
        return made

    def quantized(self, value: ir.Value, scale: float, zero_point: int) -> ir.Value:
        """The value in tiles, on a grid of uint8: another output of what computes it, if that has none yet."""
        tiles = self.tiled(value)
        key = (tiles, scale, zero_point)
        if key not in self.words:
            node = tiles.producer()
            assert node is not None
            if node.op_type in ("SparseLinear", "AddNormalize", "Attention") and node.outputs[1].type is None:
                words, grid = node.outputs[1], node
                words.type = ir.TensorType(ir.DataType.UINT8)
            else:
                grid = self._node("Quantize", [tiles], [ir.DataType.UINT8])
                words = grid.outputs[0]
            _set_grid(grid, scale, zero_point)
            self.words[key] = words
        return self.words[key]

    def _multiply(self, parts: list[Linear], activation: int = 0) -> ir.Value:
        first = parts[0]
        words = self.quantized(first.source, first.input_scale, first.input_zero_point)
        constants = [np.concatenate([getattr(part, name) for part in parts]) for name in ("scale", "bias")]
        inputs = [words, *self._form(parts), *map(self._initializer, constants)]
        node = self._node("SparseLinear", inputs, [ir.DataType.FLOAT, None])
        node.attributes.add(ir.AttrInt64("inputs", first.weight.shape[1]))
        node.attributes.add(ir.AttrInt64("zero_point", first.input_zero_point))
        node.attributes.add(ir.AttrInt64("activation", activation))
        _set_grid(node, 1.0, 0)
        self.like[node.outputs[0]] = self.like[self.tiled(first.source)]
        return node.outputs[0]

    def _attend(self, attention: Attention) -> ir.Value:
        tiles = self._multiply(list(attention.parts))
        inputs = [tiles, self.like[tiles], attention.mask]
        node = self._node("Attention", inputs, [ir.DataType.FLOAT, None])
        node.attributes.add(ir.AttrInt64("heads", attention.heads))
        node.attributes.add(ir.AttrFloat32("scale", attention.scale))
        _set_grid(node, 1.0, 0)
        self.like[node.outputs[0]] = self.like[tiles]
        return node.outputs[0]

    def _normalize(self, value: ir.Value, linear: Linear, residual: ir.Value | None) -> ir.Value:
        other = self.tiled(residual) if residual is not None else None
        tiles = self._multiply([linear])
        layer = value.producer()
        assert layer is not None
        node = self._node("AddNormalize", [tiles, other, *layer.inputs[1:3]], [ir.DataType.FLOAT, None])
        node.attributes.add(ir.AttrFloat32("epsilon", layer.attributes.get_float("epsilon", 1e-5)))
        _set_grid(node, 1.0, 0)
        self.like[node.outputs[0]] = self.like[tiles]
        return node.outputs[0]

    def _form(self, parts: list[Linear]) -> list[ir.Value]:
        """The arrays of the sparse form of the linears' weights. Layers that share a weight share its form."""
        key = tuple(part.initializer for part in parts)
        if key not in self.forms:
            form = self.form(np.concatenate([part.weight for part in parts]))
            self.forms[key] = [self._initializer(array) for array in (form.words, form.index, form.counts, form.rows)]
        return self.forms[key]

    def _node(self, op_type: str, inputs: Sequence[ir.Value | None], types: Sequence[ir.DataType | None]) -> ir.Node:
        node = ir.Node(DOMAIN, op_type, inputs, num_outputs=len(types))
        for output, kind in zip(node.outputs, types, strict=True):
            output.type = ir.TensorType(kind) if kind else None
        self.graph.append(node)
        return node

    def _initializer(self, array: np.ndarray) -> ir.Value:
        taken = self.graph.initializers  # of a file that was accelerated in part, some have such names already
        name = next(name for name in self.names if name not in taken)
        self.graph.register_initializer(ir.val(name, const_value=ir.tensor(array, name=name)))
        return self.graph.initializers[name]


def _set_grid(node: ir.Node, scale: float, zero_point: int) -> None:
    node.attributes["output_scale"] = ir.AttrFloat32("output_scale", scale)
    node.attributes["output_zero_point"] = ir.AttrInt64("output_zero_point", zero_point)
