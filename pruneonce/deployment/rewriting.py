"""Rewrite an int8 graph for the sparse kernels: plain ONNX in, nodes of the domain "pruneonce" out. kernels/operators.c.

A linear is QuantizeLinear, DequantizeLinear and MatMul with an int8 initializer. Chosen ones become SparseLinear. Their
activations stay in the kernels' layout, in tiles: so what lies between two of them is rewritten as well, where it has one of
these forms. A bias, a GELU or ReLU, the sum of a residual and layer normalization, multi-head attention. Elsewhere Tile and
Untile convert.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from pruneonce.deployment.sparse_form import MOST_INPUTS, MOST_OUTPUTS, SparseForm

DOMAIN = "pruneonce"
ACTIVATIONS = {"": 0, "Relu": 1, "Gelu none": 2, "Gelu tanh": 3}  # kernels/path.h


@dataclass(frozen=True)
class Linear:
    """A quantized linear of a graph. weight: int8[out, in]. scale: float[out]. bias: float[out]. out: what it computes.

    source: the float that it quantizes, by input_scale and input_zero_point.
    """

    name: str
    source: ir.Value
    input_scale: float
    input_zero_point: int
    initializer: ir.Value
    scale: np.ndarray
    bias: np.ndarray
    out: ir.Value

    @cached_property
    def weight(self) -> np.ndarray:
        return np.ascontiguousarray(array(self.initializer).T)


@dataclass(frozen=True)
class Attention:
    """Multi-head attention over three linears of one input. out: float[batch, length, channels]."""

    parts: tuple[Linear, Linear, Linear]
    heads: int
    scale: float
    mask: ir.Value | None
    out: ir.Value


def array(value: ir.Value | None) -> np.ndarray:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def _same(some: Sequence[ir.Value | None], others: Sequence[ir.Value | None]) -> bool:
    """Whether these are constants of the same numbers."""
    if len(some) != len(others) or not all(map(_constant, (*some, *others))):
        return False
    return all(np.array_equal(array(one), array(other)) for one, other in zip(some, others, strict=True))


def _producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in op_types and node.domain == "" else None


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The node that reads the value, if there is one and no more, and it is no output of the graph."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def linears(graph: ir.Graph) -> Iterator[Linear]:
    """The quantized linears of a graph that can have a sparse form, in its order."""
    for node in graph:
        if node.op_type != "MatMul" or node.domain:
            continue
        taken, weighed = (_producer(value, "DequantizeLinear") for value in node.inputs)
        quantized = _producer(taken.inputs[0], "QuantizeLinear") if taken else None
        if quantized is None or weighed is None or not _constant(weighed.inputs[0]) or quantized.inputs[0] is None:
            continue
        weight = array(weighed.inputs[0])
        scalars = (quantized.inputs[1], quantized.inputs[2] if len(quantized.inputs) > 2 else None, weighed.inputs[1])
        if weight.dtype != np.int8 or weight.ndim != 2 or not all(map(_constant, scalars)):
            continue
        if not (0 < weight.shape[0] <= MOST_INPUTS and 0 < weight.shape[1] <= MOST_OUTPUTS):
            continue
        input_scale, zero_point, scale = map(array, scalars)
        if zero_point.dtype != np.uint8 or input_scale.size != 1 or scale.size not in (1, weight.shape[1]):
            continue
        if len(weighed.inputs) > 2 and weighed.inputs[2] is not None and array(weighed.inputs[2]).any():
            continue
        if scale.size > 1 and weighed.attributes.get_int("axis", 1) not in (1, -1):  # not one of each output
            continue
        if not _same(taken.inputs[1:3], quantized.inputs[1:3]):  # type: ignore[union-attr]
            continue
        assert weighed.inputs[0] is not None
        yield Linear(
            name=weighed.inputs[0].name or "",
            source=quantized.inputs[0],
            input_scale=float(input_scale.item()),
            input_zero_point=int(zero_point.item()),
            initializer=weighed.inputs[0],
            scale=np.broadcast_to(scale.reshape(-1), weight.shape[1]) * np.float32(input_scale.item()),
            bias=np.zeros(weight.shape[1], np.float32),
            out=node.outputs[0],
        )


def rewrite(model: ir.Model, *, chosen: Collection[str], form: Callable[[np.ndarray], SparseForm]) -> None:
    """Rewrite the linears of these names, and what lies between them, in place.

    form: int8[out, in] -> its sparse form.
    """
    _Rewriting(model.graph, chosen, form).run()
    model.opset_imports[DOMAIN] = 1
    model.graph.sort()  # first: unused nodes are found from the end
    RemoveUnusedNodesPass()(model)


class _Rewriting:
    def __init__(self, graph: ir.Graph, chosen: Collection[str], form: Callable[[np.ndarray], SparseForm]):
        self.graph, self.form = graph, form
        found = [self._with_bias(linear) for linear in linears(graph) if linear.name in chosen]
        self.linears = {linear.out: linear for linear in found}
        matched = [self._attention(node) for node in graph if node.op_type == "Softmax"]
        self.attentions = {attention.out: attention for attention in matched if attention}
        self.tiles: dict[ir.Value, ir.Value] = {}  # value -> the same in tiles
        self.like: dict[ir.Value, ir.Value] = {}  # in tiles -> a value whose leading axes are the tokens
        self.forms: dict[tuple[ir.Value, ...], list[ir.Value]] = {}
        self.words: dict[tuple[ir.Value, float, int], ir.Value] = {}  # (in tiles, scale, zero point) -> uint8 in tiles

    def run(self) -> None:
        inside = {part.out for attention in self.attentions.values() for part in attention.parts}
        for value in [output for node in self.graph for output in node.outputs]:
            if value not in inside and not self._absorbed(value) and self._in_tiles(value):
                self.tiled(value)
        for value, tiles in self.tiles.items():
            if tiles.producer().op_type != "Tile":  # type: ignore[union-attr]
                plain = self._node("Untile", [tiles, self.like[tiles]], [ir.DataType.FLOAT]).outputs[0]
                plain.shape, plain.type = value.shape, value.type
                if value.is_graph_output():  # whose name is part of the model
                    value.name, plain.name = f"{value.name}.before", value.name
                value.replace_all_uses_with(plain, replace_graph_outputs=True)

    # ---- what is found ----

    def _with_bias(self, linear: Linear) -> Linear:
        """The linear with its bias, where an Add or a Sum adds one."""
        node = _only_reader(linear.out)
        if node is None or node.op_type not in ("Add", "Sum") or len(node.inputs) != 2:
            return linear
        (other,) = (value for value in node.inputs if value is not linear.out)
        if not _constant(other) or array(other).shape != linear.bias.shape:
            return linear
        return replace(linear, bias=array(other), out=node.outputs[0])

    def _activation(self, value: ir.Value) -> tuple[Linear, int] | None:
        """The linear and the code of its activation, where the value is that of a linear."""
        node = _producer(value, "Gelu", "Relu")
        if node is None or node.inputs[0] not in self.linears or _only_reader(node.inputs[0]) is None:
            return None
        kind = node.op_type if node.op_type == "Relu" else f"Gelu {node.attributes.get_string('approximate', 'none')}"
        return self.linears[node.inputs[0]], ACTIVATIONS[kind]

    def _terms(self, value: ir.Value) -> tuple[Linear, ir.Value | None] | None:
        """(linear with its bias, residual) where the value normalizes their sum."""
        node = _producer(value, "LayerNormalization")
        axis = node.attributes.get_int("axis", -1) if node else 0
        if node is None or len(node.inputs) < 3 or not all(map(_constant, node.inputs[1:3])) or value.shape is None:
            return None
        if axis not in (-1, len(value.shape) - 1):
            return None
        total = _producer(node.inputs[0], "Sum", "Add")
        if total is None or _only_reader(total.outputs[0]) is None:
            return None
        linear = next((self.linears[v] for v in total.inputs if v in self.linears and _only_reader(v)), None)
        if linear is None:
            return None
        others = [v for v in total.inputs if v is not linear.out]
        biases = [v for v in others if _constant(v) and array(v).shape == linear.bias.shape]
        rest = [v for v in others if v not in biases]
        if len(biases) > 1 or len(rest) > 1 or any(v is None or v.shape != value.shape for v in rest):
            return None
        if biases:
            linear = replace(linear, bias=linear.bias + array(biases[0]))
        return linear, rest[0] if rest else None

    def _attention(self, softmax: ir.Node) -> Attention | None:
        """The attention around a Softmax over scores."""
        mixed = _only_reader(softmax.outputs[0])
        turned = _only_reader(mixed.outputs[0]) if mixed and mixed.op_type == "MatMul" else None
        joined = _only_reader(turned.outputs[0]) if turned and turned.op_type == "Transpose" else None
        if mixed is None or joined is None or joined.op_type != "Reshape" or softmax.inputs[0] is None:
            return None
        if softmax.attributes.get_int("axis", -1) not in (-1, 3):
            return None
        value, mask, scale = softmax.inputs[0], None, 1.0
        if (added := _producer(value, "Add")) and added.inputs[0] is not None:
            value, mask = added.inputs[0], added.inputs[1]
        if (scaled := _producer(value, "Mul", "Div")) and _constant(scaled.inputs[1]) and array(scaled.inputs[1]).size == 1:
            factor = float(array(scaled.inputs[1]).item())
            value, scale = scaled.inputs[0], factor if scaled.op_type == "Mul" else 1 / factor  # type: ignore[assignment]
        scores = _producer(value, "MatMul")
        if scores is None:
            return None
        parts = [
            self._head(scores.inputs[0], (0, 2, 1, 3)),
            self._head(scores.inputs[1], (0, 2, 3, 1)),
            self._head(mixed.inputs[1], (0, 2, 1, 3)),
        ]
        out = joined.outputs[0]
        if any(part is None for part in parts) or tuple(turned.attributes.get_ints("perm", ())) != (0, 2, 1, 3):  # type: ignore[union-attr]
            return None
        q, k, v = (linear for linear, _, _ in parts)  # type: ignore[misc]
        heads, size = parts[0][1:]  # type: ignore[index]
        same = len({(p.source, p.input_scale, p.input_zero_point, len(p.bias)) for p in (q, k, v)}) == 1
        if not same or len({part[1:] for part in parts}) > 1 or heads * size != len(q.bias) or size % 4:  # type: ignore[index]
            return None
        if out.shape is None or len(out.shape) != 3 or out.shape != q.out.shape or not self._is_mask(mask):
            return None
        return Attention((q, k, v), heads, scale, mask, out)

    def _head(self, value: ir.Value | None, perm: tuple[int, ...]) -> tuple[Linear, int, int] | None:
        """(linear, heads, channels of a head) where the value is a linear's, cut into heads."""
        turned = _producer(value, "Transpose")
        if turned is None or tuple(turned.attributes.get_ints("perm", ())) != perm:
            return None
        cut = _producer(turned.inputs[0], "Reshape")
        shape = cut.outputs[0].shape if cut else None
        if cut is None or cut.inputs[0] not in self.linears or _only_reader(cut.inputs[0]) is None or shape is None:
            return None
        if len(shape) != 4 or not isinstance(shape[2], int) or not isinstance(shape[3], int):
            return None
        return self.linears[cut.inputs[0]], shape[2], shape[3]

    @staticmethod
    def _is_mask(mask: ir.Value | None) -> bool:
        """Whether it is none, or float[batch or 1, 1, 1, length]."""
        shape = mask.shape if mask is not None else None
        return mask is None or (shape is not None and len(shape) == 4 and shape[1] == shape[2] == 1)

    def _in_tiles(self, value: ir.Value) -> bool:
        """Whether the value is computed in tiles."""
        return bool(value in self.linears or value in self.attentions or self._activation(value) or self._terms(value))

    def _absorbed(self, value: ir.Value) -> bool:
        """Whether the value of a linear is computed inside of what reads it."""
        node = _only_reader(value) if value in self.linears else None
        if node is None:
            return False
        if node.op_type in ("Sum", "Add"):
            node = _only_reader(node.outputs[0])
        return node is not None and bool(self._activation(node.outputs[0]) or self._terms(node.outputs[0]))

    # ---- what is made ----

    def tiled(self, value: ir.Value) -> ir.Value:
        """The value in tiles; memoized."""
        if value not in self.tiles:
            self.tiles[value] = self._tiled(value)
        return self.tiles[value]

    def _tiled(self, value: ir.Value) -> ir.Value:
        if attention := self.attentions.get(value):
            return self._attend(attention)
        if terms := self._terms(value):
            return self._normalize(value, *terms)
        if activated := self._activation(value):
            return self._multiply([activated[0]], activation=activated[1])
        if linear := self.linears.get(value):
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
        name = f"{DOMAIN}.{len(self.graph.initializers)}"  # none is removed meanwhile
        self.graph.register_initializer(ir.val(name, const_value=ir.tensor(array, name=name)))
        return self.graph.initializers[name]


def _set_grid(node: ir.Node, scale: float, zero_point: int) -> None:
    node.attributes["output_scale"] = ir.AttrFloat32("output_scale", scale)
    node.attributes["output_zero_point"] = ir.AttrInt64("output_zero_point", zero_point)
