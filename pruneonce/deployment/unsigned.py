"""A model whose 8-bit weights are stored as unsigned integers: the same function, in other products of ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


def unsigned(model: Path | bytes) -> bytes:
    """The model, as a file's bytes, with every int8 weight w that is dequantized stored as w + 128, with zero point 128."""
    read = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(model)
    graph = read.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    readers = [node for node in graph.node if node.op_type == "DequantizeLinear" and _is_int8(stored.get(node.input[0]))]
    for weight in {node.input[0]: stored[node.input[0]] for node in readers}.values():
        shifted = numpy_helper.to_array(weight).astype(np.int16) + 128
        weight.CopyFrom(numpy_helper.from_array(shifted.astype(np.uint8), weight.name))
    for node in readers:
        scale, zero = stored[node.input[1]], f"{node.input[1]}.zero_point"
        if zero not in stored:  # once for all that read this scale
            stored[zero] = numpy_helper.from_array(np.full(tuple(scale.dims), 128, np.uint8), zero)
            graph.initializer.append(stored[zero])
        node.input.append(zero)
    return read.SerializeToString()


def _is_int8(tensor: onnx.TensorProto | None) -> bool:
    return tensor is not None and tensor.data_type == onnx.TensorProto.INT8
