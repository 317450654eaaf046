"""Embedding tables in int8: most bytes of a small model whose encoder is sparse.

A table int8[rows, columns] has one scale for each column: value = table * scale[column]. Rows are gathered first and
dequantized after, by Gather, Cast and Mul: DequantizeLinear is slower there, and before Gather it would dequantize the
whole table in every call. Measured times: docs/design-notes.md.
"""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

TINY = 1e-8  # floor of a scale, for a column of zeros


def scales_of(table: str) -> str:
    """The name of a table's scales."""
    return f"{table}_scale"


def quantize(path: Path) -> dict[str, float]:
    """Store as int8, in the ONNX file itself, every float table whose rows Gather nodes read, and no other node.

    Returns table -> relative error, ||table - stored|| / ||table||. Tables are found in the graph, for any architecture.
    """
    proto = onnx.load(path)
    graph = proto.graph
    errors: dict[str, float] = {}
    for tensor in [t for t in graph.initializer if _is_table(t, graph)]:
        table = numpy_helper.to_array(tensor)
        scale = np.maximum(np.abs(table).max(axis=0) / 127, TINY).astype(np.float32)
        integers = np.rint(table / scale).astype(np.int8)
        norm = float(np.linalg.norm(table))
        errors[tensor.name] = float(np.linalg.norm(table - integers * scale)) / norm if norm else 0.0
        tensor.CopyFrom(numpy_helper.from_array(integers, tensor.name))
        graph.initializer.append(numpy_helper.from_array(scale, scales_of(tensor.name)))
    nodes = [part for node in graph.node for part in _dequantized(node, errors)]
    del graph.node[:]
    graph.node.extend(nodes)
    types = [value for value in graph.value_info if value.name not in errors]  # the exporter declares tables as float
    del graph.value_info[:]
    graph.value_info.extend(types)
    onnx.save(proto, path)
    return errors


def keep(path: Path) -> dict[str, float]:
    """Leave every table in float: `quantize` for a file without int8 tables."""
    return {}


def _is_table(tensor: onnx.TensorProto, graph: onnx.GraphProto) -> bool:
    """Whether a tensor is a float matrix that only Gather nodes read, by rows."""
    readers = [node for node in graph.node if tensor.name in node.input]
    axes = [a.i for node in readers for a in node.attribute if a.name == "axis"]
    return (
        tensor.data_type == onnx.TensorProto.FLOAT
        and len(tensor.dims) == 2
        and bool(readers)
        and all(node.op_type == "Gather" and node.input[0] == tensor.name for node in readers)
        and not any(axes)
        and tensor.name not in {output.name for output in graph.output}
    )


def _dequantized(node: onnx.NodeProto, tables: Collection[str]) -> list[onnx.NodeProto]:
    """The node; behind one that gathers from a table also Cast, and Mul by the scales."""
    if node.op_type != "Gather" or node.input[0] not in tables:
        return [node]
    values = node.output[0]
    integers, floats = f"{values}_int8", f"{values}_float"
    node.output[0] = integers
    cast = onnx.helper.make_node("Cast", [integers], [floats], name=f"{node.name}_cast", to=onnx.TensorProto.FLOAT)
    scale = onnx.helper.make_node("Mul", [floats, scales_of(node.input[0])], [values], name=f"{node.name}_scale")
    return [node, cast, scale]
