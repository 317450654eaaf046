"""The quantized linears of an int8 graph, and what around them the sparse kernels compute as well.

A linear is QuantizeLinear, DequantizeLinear and MatMul with an int8 initializer. Around it there may be a bias, a GELU or
ReLU, layer normalization of its sum with a residual, and multi-head attention.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from pruneonce.deployment.sparse_form import MOST_INPUTS, MOST_OUTPUTS

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
        if node.op_type != "MatMul" or node.domain or len(node.inputs) != 2:  # of a damaged file it may have one
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


class Matches:
    """What the kernels' operators compute of a graph, if these linears are chosen.

    linears, attentions: by the value that each one computes.
    """

    def __init__(self, graph: ir.Graph, chosen: Iterable[Linear]):
        self.linears = {linear.out: linear for linear in map(self._with_bias, chosen)}
        matched = [self._attention(node) for node in graph if node.op_type == "Softmax"]
        self.attentions = {attention.out: attention for attention in matched if attention}

    def _with_bias(self, linear: Linear) -> Linear:
        """The linear with its bias, where an Add or a Sum adds one."""
        node = _only_reader(linear.out)
        if node is None or node.op_type not in ("Add", "Sum") or len(node.inputs) != 2:
            return linear
        (other,) = (value for value in node.inputs if value is not linear.out)
        if not _constant(other) or array(other).shape != linear.bias.shape:
            return linear
        return replace(linear, bias=array(other), out=node.outputs[0])

    def activation(self, value: ir.Value) -> tuple[Linear, int] | None:
        """The linear and the code of its activation, where the value is that of a linear."""
        node = _producer(value, "Gelu", "Relu")
        if node is None or node.inputs[0] not in self.linears or _only_reader(node.inputs[0]) is None:
            return None
        kind = node.op_type if node.op_type == "Relu" else f"Gelu {node.attributes.get_string('approximate', 'none')}"
        return self.linears[node.inputs[0]], ACTIVATIONS[kind]

    def terms(self, value: ir.Value) -> tuple[Linear, ir.Value | None] | None:
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

    def is_computed(self, value: ir.Value) -> bool:
        """Whether the value is computed in tiles."""
        return bool(value in self.linears or value in self.attentions or self.activation(value) or self.terms(value))

    def is_absorbed(self, value: ir.Value) -> bool:
        """Whether the value of a linear is computed inside of what reads it."""
        node = _only_reader(value) if value in self.linears else None
        if node is None:
            return False
        if node.op_type in ("Sum", "Add"):
            node = _only_reader(node.outputs[0])
        return node is not None and bool(self.activation(node.outputs[0]) or self.terms(node.outputs[0]))
