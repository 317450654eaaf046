"""Audit of an ONNX file's kernels: which one multiplies each weight in ONNX Runtime, and which products stay float."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from pruneonce.deployment import runtime
from pruneonce.deployment.inspect import content, matrix_readers
from pruneonce.errors import ExportError

INTEGER_KERNELS = (
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "QLinearMatMul",
    "QGemm",
    "QAttention",
)


class Audit:
    """The graph of an ONNX file after ONNX Runtime has optimised it."""

    def __init__(self, path: Path):
        self.graph = optimised(path).graph

    def kernels(self, weights: Mapping[str, np.ndarray]) -> dict[str, str]:
        """Layer name -> op type of the node that reads its weight, or "not found".

        Several op types are joined: "MatMul + MatMulIntegerToFloat".
        """
        readers = matrix_readers(self.graph)
        found = {layer: readers.get(content(w), []) + readers.get(content(w.T), []) for layer, w in weights.items()}
        return {layer: " + ".join(sorted({node.op_type for node, _ in r})) or "not found" for layer, r in found.items()}

    def operators(self) -> dict[str, int]:
        """Op type -> number of its nodes."""
        return dict(sorted(Counter(node.op_type for node in self.graph.node).items()))

    def float_products(self) -> list[str]:
        """Names of the stored float matrices that a matrix product reads."""
        floats = {t.name for t in self.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2}
        products = [n for n in self.graph.node if "MatMul" in n.op_type or "Gemm" in n.op_type]
        return sorted({name for node in products for name in node.input if name in floats})

    def summary(self, kernels: Mapping[str, str]) -> dict[str, Any]:
        """Nodes by op type, layers by kernel, and the products that stay float."""
        return {
            "operators": self.operators(),
            "kernels": dict(sorted(Counter(kernels.values()).items())),
            "float_products": self.float_products(),
        }


def optimised(path: Path) -> onnx.ModelProto:
    """The model as ONNX Runtime runs it."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "optimised.onnx"
        runtime.session(path, threads=1, save_optimised=saved)
        return onnx.load(saved)


def check_integer(kernels: Mapping[str, str]) -> None:
    """Raises ExportError, by name, for every layer whose product ONNX Runtime does not run on integers."""
    floats = {layer: kernel for layer, kernel in kernels.items() if kernel not in INTEGER_KERNELS}
    if floats:
        raise ExportError(f"expected an integer kernel for every quantized linear, found {floats}.")
