"""Exact sums of 8-bit products on processors without VNNI.

There, ONNX Runtime adds two products of uint8 and int8 in 16 bits, which saturate: the answers differ, and no error tells.
It adds products of uint8 and uint8 in 32 bits. So `exact` stores the weights as unsigned numbers, and changes no value. ONNX
Runtime's option `session.x64quantprecision` does the same, but ends the process in 1.17 to 1.24, and refuses weights that
several products read in 1.32.
"""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper

NARROW = 64  # two products of 255 and weights up to this fit into 16 bits


def exact(model: Path | bytes) -> Path | bytes:
    """The model for a session on this processor: as it is, or as the bytes of a file whose sums cannot saturate."""
    return unsigned(model) or model if saturates() else model


@functools.cache
def saturates() -> bool:
    """Whether ONNX Runtime's sums saturate on this processor. It is asked to add products of 255 and 127."""
    terms = 64
    product = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weight"], ["sums"])],
        "saturates",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["rows", terms])],
        [helper.make_tensor_value_info("sums", TensorProto.INT32, ["rows", 16])],
        [numpy_helper.from_array(np.full((terms, 16), 127, np.int8), "weight")],
    )
    model = helper.make_model(product, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (sums,) = session.run(None, {"x": np.full((16, terms), 255, np.uint8)})
    return bool((sums != terms * 255 * 127).any())


def unsigned(model: Path | bytes) -> bytes | None:
    """The same function, as a file's bytes: an int8 weight w is w + 128 there, and is dequantized with zero point 128.

    None for a model without such weights beyond NARROW. Those that anything else reads, or that have a zero point, stay.
    """
    read = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(model)
    stored = {tensor.name: tensor for tensor in read.graph.initializer}
    wide = {name: weight for name, tensor in stored.items() if (weight := _wide(tensor)) is not None}
    others = {name for node in read.graph.node if not _dequantizes(node, stored) for name in node.input}
    readers = [n for n in read.graph.node if _dequantizes(n, stored) and n.input[0] in wide and n.input[0] not in others]
    for name in {node.input[0] for node in readers}:
        shifted = (wide[name].astype(np.int16) + 128).astype(np.uint8)
        stored[name].CopyFrom(numpy_helper.from_array(shifted, name))
    for scale in {node.input[1] for node in readers}:
        zeros = np.full(tuple(stored[scale].dims), 128, np.uint8)
        read.graph.initializer.append(numpy_helper.from_array(zeros, _zero_point(scale)))
    for node in readers:
        node.input.append(_zero_point(node.input[1]))
    return read.SerializeToString() if readers else None


def _wide(tensor: TensorProto) -> np.ndarray | None:
    """The numbers of an int8 tensor of which one is beyond NARROW."""
    if tensor.data_type != TensorProto.INT8:
        return None
    weight = numpy_helper.to_array(tensor)
    return weight if (np.abs(weight.astype(np.int16)) > NARROW).any() else None


def _dequantizes(node: NodeProto, stored: Mapping[str, TensorProto]) -> bool:
    """Whether a node is a DequantizeLinear by a stored scale, without a zero point."""
    return node.op_type == "DequantizeLinear" and len(node.input) == 2 and node.input[1] in stored


def _zero_point(scale: str) -> str:
    return f"{scale}.zero_point"
