"""Tables that are looked up, in int8: most of a small model's bytes once its encoder is sparse.

A row is gathered first and widened after: table int8[rows, columns], value = table * scale[column]. Symmetric, a scale a
column, so that widening needs no lookup of its own. The nodes are Gather, Cast, Mul: 128 rows of 384 take ONNX Runtime
0.02 ms; with DequantizeLinear, whose kernel goes column by column, 0.08; in float 0.01. DequantizeLinear before the Gather
would widen the whole table for every call: 17 ms.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

TINY = 1e-8  # floor of a scale: a column of zeros


def quantize(path: Path) -> dict[str, float]:
    """Store every float table that Gather nodes alone read, a row at a time, as int8, in the ONNX file `path` itself.

    Returns table -> relative error, ||table - stored|| / ||table||. Nothing is asked about the kind of model: what is
    gathered is found in the graph.
    """
    proto = onnx.load(path)
    stored = {t.name: t for t in proto.graph.initializer}
    tables = [name for name in stored if _is_table(stored[name], proto.graph)]
    errors: dict[str, float] = {}
    for name in tables:
        table = numpy_helper.to_array(stored[name])
        scale = np.maximum(np.abs(table).max(axis=0) / 127, TINY).astype(np.float32)
        integers = np.rint(table / scale).astype(np.int8)
        norm = float(np.linalg.norm(table))
        errors[name] = float(np.linalg.norm(table - integers * scale)) / norm if norm else 0.0
        stored[name].CopyFrom(numpy_helper.from_array(integers, name))
        proto.graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
    nodes = [made for node in proto.graph.node for made in _widened(node, errors)]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    declared = [value for value in proto.graph.value_info if value.name not in errors]  # as float, by the exporter
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(declared)
    onnx.save(proto, path)
    return errors


def _is_table(tensor: onnx.TensorProto, graph: onnx.GraphProto) -> bool:
    """A float matrix that is gathered by rows and nothing else."""
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


def _widened(node: onnx.NodeProto, tables: dict[str, float]) -> list[onnx.NodeProto]:
    """The node; if it gathers from one of the tables, widened behind it: Cast, then Mul by the scales."""
    if node.op_type != "Gather" or node.input[0] not in tables:
        return [node]
    values = node.output[0]
    integers, floats = f"{values}_int8", f"{values}_float"
    node.output[0] = integers
    cast = onnx.helper.make_node("Cast", [integers], [floats], name=f"{node.name}_cast", to=onnx.TensorProto.FLOAT)
    scale = onnx.helper.make_node("Mul", [floats, f"{node.input[0]}_scale"], [values], name=f"{node.name}_scale")
    return [node, cast, scale]
