"""The matrices that an ONNX file stores, in float or int8: size, zeros, pattern of the zeros, bits, bytes."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from pruneonce.deployment.embeddings import scales_of
from pruneonce.deployment.inspect import PRUNABLE
from pruneonce.deployment.provenance import ABOUT, BLOCKS, GROUPS
from pruneonce.errors import PackError

BY_ROUNDING = 0.1  # share of zeros in an int8 matrix below which it counts as dense
ROUNDED = 0.25  # most zeros among the weights of blocks that were kept: int8 rounds some to zero
IN_BLOCKS = 0.5  # least share of the zeros that lie in whole blocks of zeros
MOST_GROUPED = 0.7  # zeros of a matrix in which N:M is a pattern and no accident


@dataclass(frozen=True)
class Layer:
    """A stored matrix. role: "linear", which is multiplied, or "embedding", whose rows are looked up.

    outputs, inputs: of an embedding, its rows and columns. zeros: share of its weights, in [0, 1]. pattern: as `held` says.
    prunable: whether the file's metadata lists it. bytes: of its weights, without scales.
    """

    name: str
    role: str
    outputs: int
    inputs: int
    zeros: float
    pattern: str
    bits: int
    bytes: int
    prunable: bool


@dataclass(frozen=True)
class Content:
    """What a file holds. about: what it says of itself; None if it says nothing. operators: of the sparse kernels.

    parameters: numbers of all stored tensors, without indices and without the scales of quantization.
    """

    about: dict[str, Any] | None
    layers: list[Layer]
    parameters: int
    operators: int


def content(model: Path | bytes) -> Content:
    """What a file holds. model: an ONNX file, or its bytes. Raises PackError if it cannot be read."""
    try:
        proto = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(model)
        said = {entry.key: entry.value for entry in proto.metadata_props}
        return Content(
            about=_mapping(said.get(ABOUT)),
            layers=list(_layers(proto.graph, _mapping(said.get(PRUNABLE)) or {})),
            parameters=_parameters(proto.graph),
            operators=sum(node.domain == "pruneonce" for node in proto.graph.node),
        )
    except Exception as error:  # protobuf's and onnx' errors have no common base
        raise PackError(f"expected an ONNX file, found: {error}. Get the file again.") from None


def _mapping(text: str | None) -> dict[str, Any] | None:
    """An entry of the metadata, which anybody can write; None for what is no mapping."""
    try:
        found = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _layers(graph: onnx.GraphProto, orientation: Mapping[str, str]) -> Iterator[Layer]:
    """Each stored matrix that is multiplied or looked up, once, in the graph's order."""
    matrices = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    # int8 weights are dequantized before a product, after a look-up: the name of the result stands for the matrix.
    stands_for = {name: name for name in matrices}
    grids = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input and node.output]
    stands_for |= {node.output[0]: node.input[0] for node in grids if node.input[0] in matrices}
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Gather"):
            continue
        for name in [stands_for.pop(i) for i in node.input if i in stands_for]:
            tensor = matrices.pop(name, None)
            if tensor is not None:
                yield _layer(tensor, node, orientation.get(name.removesuffix(".weight")))


def _layer(tensor: onnx.TensorProto, node: onnx.NodeProto, orientation: str | None) -> Layer:
    weight = numpy_helper.to_array(tensor)
    linear = node.op_type != "Gather"
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    if linear and (orientation or ("out,in" if transposed else "in,out")) == "in,out":
        weight = weight.T
    zero = weight == 0
    return Layer(
        name=tensor.name.removesuffix(".weight"),
        role="linear" if linear else "embedding",
        outputs=weight.shape[0],
        inputs=weight.shape[1],
        zeros=float(zero.mean()) if zero.size else 0.0,
        pattern=held(zero, least=BY_ROUNDING if weight.dtype.kind in "iu" else 0.0) if linear else "-",
        bits=8 * weight.itemsize,
        bytes=weight.nbytes,
        prunable=orientation is not None,
    )


def held(zero: np.ndarray, *, least: float) -> str:
    """The pattern that the zeros of a matrix keep: bool[outputs, inputs]. "dense" up to this share of zeros.

    In int8 some weights of a block that was kept are zero by rounding. So most zeros must lie in whole blocks, and few
    weights of the others may be zero.
    """
    share = zero.mean() if zero.size else 0.0
    if share <= least:
        return "dense"
    for name, (rows, columns) in BLOCKS.items():
        if _in_blocks(zero, rows, columns):
            return name
    for name, (most, size) in GROUPS.items():
        if 1 - most / size <= share <= MOST_GROUPED and zero.shape[1] % size == 0:
            kept = size - zero.reshape(len(zero), -1, size).sum(-1)
            if (kept <= most).all():
                return name
    return "unstructured"


def _in_blocks(zero: np.ndarray, rows: int, columns: int) -> bool:
    outputs, inputs = zero.shape
    if outputs % rows or inputs % columns:
        return False
    blocks = zero.reshape(outputs // rows, rows, inputs // columns, columns).sum((1, 3))
    size = rows * columns
    whole = int((blocks == size).sum())
    inside = int(zero.sum()) - whole * size  # zeros in blocks that were kept
    others = zero.size - whole * size
    return whole * size >= IN_BLOCKS * zero.sum() and inside <= ROUNDED * others


def _parameters(graph: onnx.GraphProto) -> int:
    scales = {scales_of(tensor.name) for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    scales |= {
        name for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear") for name in node.input[1:]
    }
    indices = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)
    return sum(
        int(np.prod(tensor.dims))
        for tensor in graph.initializer
        if tensor.dims and tensor.name not in scales and tensor.data_type not in indices
    )
