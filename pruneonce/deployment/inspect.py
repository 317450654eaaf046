"""The prunable weights that an ONNX file stores: their values, their zeros, whether the sparsity pattern holds."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from pruneonce.errors import PatternBroken

PRUNABLE = "pruneonce.prunable"  # key in the file's metadata: layer -> orientation of its weight, "out,in" or "in,out"

Content = tuple[str, tuple[int, ...], bytes]
Readers = dict[Content, list[tuple[onnx.NodeProto, int]]]  # content of a matrix -> (node, index of its input)


def content(array: np.ndarray) -> Content:
    """Element type, shape and bytes of an array: the same for equal arrays only."""
    return array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes()


def matrix_readers(graph: onnx.GraphProto) -> Readers:
    """The nodes that read each stored matrix. Its content stands for it, because names do not survive an export."""
    contents = {t.name: content(numpy_helper.to_array(t)) for t in graph.initializer if len(t.dims) == 2}
    readers = defaultdict(list)
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in contents:
                readers[contents[name]].append((node, i))
    return dict(readers)


def prunable_weights(path: Path) -> dict[str, np.ndarray]:
    """Layer name -> array[out, in], for the layers that the file's metadata lists."""
    proto = onnx.load(path)
    orientation = json.loads({p.key: p.value for p in proto.metadata_props}.get(PRUNABLE, "{}"))
    stored = {t.name: t for t in proto.graph.initializer}
    arrays = {layer: numpy_helper.to_array(stored[f"{layer}.weight"]) for layer in orientation}
    return {layer: w if orientation[layer] == "out,in" else w.T for layer, w in arrays.items()}


def matrix_zeros(path: Path) -> dict[str, tuple[int, int]]:
    """Layer name -> (zeros, size) of its matrix, counted in the file."""
    return {layer: (int((w == 0).sum()), w.size) for layer, w in prunable_weights(path).items()}


def sparsity(path: Path) -> dict[str, Any]:
    """Share of zeros in all prunable matrices, and in each of them by layer, in [0, 1]."""
    matrices = matrix_zeros(path)
    return {
        "sparsity": sum(zeros for zeros, _ in matrices.values()) / sum(size for _, size in matrices.values()),
        "sparsity_of": {layer: zeros / size for layer, (zeros, size) in matrices.items()},
    }


def check_zeros(path: Path, pattern: Mapping[str, np.ndarray]) -> None:
    """Raises PatternBroken if a pruned weight is not zero in the file. pattern: bool[out, in], True where pruned."""
    stored = prunable_weights(path)
    for layer, pruned in pattern.items():
        if (pruned & (stored[layer] != 0)).any():
            raise PatternBroken(
                f"expected the pruned weights of {layer} to be zero in {path.name}, found some that are not."
            )
