"""What an ONNX file holds and how ONNX Runtime runs it: prunable weights, zeros, kernels."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from pruneonce.deployment import runtime
from pruneonce.errors import ExportError, PatternBroken

PRUNABLE = "pruneonce.prunable"  # key in the file's metadata: the layers whose weights are named after them


def identity(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes()


def prunable_weights(path: Path) -> dict[str, np.ndarray]:
    """The prunable matrices that the file says it holds: layer name -> array[out, in]."""
    proto = onnx.load(path)
    order = json.loads({p.key: p.value for p in proto.metadata_props}.get(PRUNABLE, "{}"))
    stored = {t.name: t for t in proto.graph.initializer}
    arrays = {layer: numpy_helper.to_array(stored[f"{layer}.weight"]) for layer in order}
    return {layer: w if order[layer] == "out,in" else w.T for layer, w in arrays.items()}


def matrix_zeros(path: Path) -> dict[str, tuple[int, int]]:
    """(zeros, size) of each prunable matrix, counted in the file."""
    return {layer: (int((w == 0).sum()), w.size) for layer, w in prunable_weights(path).items()}


def check_zeros(path: Path, pattern: Mapping[str, np.ndarray]) -> None:
    """Raises PatternBroken if a pruned weight is not zero in the file. pattern: bool[out, in], True where pruned."""
    stored = prunable_weights(path)
    for layer, zero in pattern.items():
        if (zero & (stored[layer] != 0)).any():
            raise PatternBroken(
                f"expected the pruned weights of {layer} to be zero in {path.name}, found some that are not."
            )


def shares_weights(path: Path) -> bool:
    """Whether several products read one int8 weight: ALBERT's layers, DeBERTa's tables of positions.

    ONNX Runtime 1.32 cannot load such a file with EXACT_SUMS ("Attempt to replace the existing tensor"); for processors that
    need it there are weights of 7 bits.
    """
    graph = onnx.load(path).graph
    integers = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
    widened = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in integers}
    return any(count > 1 for count in Counter(widened[i] for n in graph.node for i in n.input if i in widened).values())


class Audit:
    """The graph as ONNX Runtime runs it: which kernel multiplies which weight, and which products stay float."""

    def __init__(self, path: Path):
        self.graph = onnx.load_from_string(runtime.optimised(path)).graph
        self.stored = {t.name: t for t in self.graph.initializer}

    def kernels(self, weights: Mapping[str, np.ndarray]) -> dict[str, str]:
        """layer name -> op type of the node that reads its weight, found by content: names do not survive fusion.

        Where nodes of different types read one weight, all of them: "MatMul + MatMulIntegerToFloat".
        """
        matrices = {name: identity(numpy_helper.to_array(t)) for name, t in self.stored.items() if len(t.dims) == 2}
        readers = defaultdict(set)
        for node in self.graph.node:
            for name in node.input:
                if name in matrices:
                    readers[matrices[name]].add(node.op_type)
        return {
            layer: " + ".join(sorted(readers[identity(w)] | readers[identity(w.T)])) or "not found"
            for layer, w in weights.items()
        }

    def operators(self) -> dict[str, int]:
        """op type -> how many nodes of it run."""
        return dict(sorted(Counter(node.op_type for node in self.graph.node).items()))

    def float_products(self) -> list[str]:
        """Matrix products with a stored float matrix, by the name of that matrix."""
        matrices = {n for n, t in self.stored.items() if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2}
        products = [n for n in self.graph.node if "MatMul" in n.op_type or "Gemm" in n.op_type]
        return sorted({name for node in products for name in node.input if name in matrices})


def check_integer(kernels: Mapping[str, str]) -> None:
    """Raises ExportError, by name, for every layer whose product ONNX Runtime does not run on integers."""
    floats = {layer: kernel for layer, kernel in kernels.items() if not runtime.is_integer(kernel)}
    if floats:
        raise ExportError(f"expected an integer kernel for every quantized linear, found {floats}.")
