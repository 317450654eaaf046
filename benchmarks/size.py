"""Bytes of an encoder and of a whole file, in fp32, int8, int8 zipped (zlib 6) and int8 packed, beside their entropy.

Encoder: the prunable matrices alone. Bound: the entropy of each matrix by itself (`entropy_bytes`), that of its
mask and of its other values. Whole file: everything else too, with tables in int8; fp32 is the dense file.
Weights: normal random numbers. With `--export data/export/r8` MiniLM-L6 has the dense ones of that export, pruned by
magnitude and quantized by this library, and its int8 file is one more row. What is no matrix and no table stays random.
"""

import math
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import BertForSequenceClassification

from benchmarks import models
from benchmarks.measuring import Row, arguments, bar, publish
from pruneonce import quantization
from pruneonce.deployment import embeddings, inspect, packing
from pruneonce.deployment.export import OPSET
from pruneonce.sparsity import masks

SPARSITIES = (0.85, 0.90)
ORDER = ("MiniLM-L6", "BERT-Base")
OVER_BOUND = 0.08  # at most: packed encoder / bound - 1
SMALLER = {0.85: 18, 0.90: 25}  # at least, by sparsity: fp32 encoder / packed encoder
SMALLER_FILE = 6  # at least: fp32 file / packed file, of MiniLM-L6


@dataclass(frozen=True)
class Sizes:
    """Sizes of a classifier's parameters by name: prunable matrices, embedding tables, all others."""

    matrices: Mapping[str, tuple[int, ...]]
    tables: Mapping[str, tuple[int, ...]]
    others: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, shape: str) -> Self:
        """Read off a model of that shape, with eight classes and without memory for its weights."""
        with torch.device("meta"):
            model = BertForSequenceClassification(models.config(shape, dropout=0.0, attention="eager", classes=8))
        matrices = {name: tuple(linear.weight.shape) for name, linear in masks.prunable(model, models.PRUNABLE).items()}
        parameters = {name.removeprefix("bert."): tuple(p.shape) for name, p in model.named_parameters()}
        rest = {name: size for name, size in parameters.items() if name.removesuffix(".weight") not in matrices}
        tables = {name: size for name, size in rest.items() if name.endswith("_embeddings.weight")}
        return cls(matrices, tables, {name: size for name, size in rest.items() if name not in tables})

    @property
    def float_weights(self) -> int:
        """How many weights stand outside of the prunable matrices."""
        return sum(math.prod(size) for size in (*self.tables.values(), *self.others.values()))


def entropy_bytes(values: np.ndarray) -> float:
    """Return n · H / 8, the fewest bytes of a code for independent values. H: bits, -Σ p log2 p over the values that occur.

    H is the entropy of the mask plus that of the values: H(zero or not) + P(not zero) · H(value if not zero).
    Source: Shannon 1948, sections 6 (the decomposition of a choice) and 9.
    """
    _, counts = np.unique(values, return_counts=True)
    return float((counts * np.log2(values.size / counts)).sum() / 8)


def normal(sizes: Mapping[str, tuple[int, ...]], *, seed: int) -> dict[str, np.ndarray]:
    """A float32 array of normal random numbers for each size."""
    draw = np.random.default_rng(seed)
    return {name: draw.standard_normal(size, np.float32) for name, size in sizes.items()}


def write_int8(path: Path, sizes: Sizes, matrices: Mapping[str, np.ndarray], stored: Mapping[str, np.ndarray]) -> None:
    """Write an ONNX file with every tensor of the model and a Gather for each table, without other nodes (some 60 kB).

    stored: real tensors; a table that is not among them is random.
    """
    tables = normal(sizes.tables, seed=2)
    for name in tables:  # embeddings.word_embeddings.weight
        tables[name] = next((array for key, array in stored.items() if name.split(".")[1] in key), tables[name])
    scales = normal({f"{name}.scale": (len(matrix),) for name, matrix in matrices.items()}, seed=3)
    tensors = {**tables, **matrices, **scales, **normal(sizes.others, seed=4)}
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["length"])
    rows = [helper.make_tensor_value_info(f"{n}_rows", TensorProto.FLOAT, ["length", t.shape[1]]) for n, t in tables.items()]
    nodes = [helper.make_node("Gather", [name, "ids"], [f"{name}_rows"]) for name in tables]
    stored_tensors = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "model", [ids], rows, stored_tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)]), path)
    embeddings.quantize(path)


@dataclass(frozen=True)
class Measured:
    """Bytes of the encoder and of the whole file, by form."""

    shape: str
    sparsity: float
    weights: str
    encoder: Mapping[str, float]
    file: Mapping[str, float]

    def encoder_row(self) -> Row:
        over, smaller = self.encoder["packed"] / self.encoder["bound"] - 1, self.encoder["fp32"] / self.encoder["packed"]
        at_least = SMALLER[min(SMALLER, key=lambda sparsity: abs(sparsity - self.sparsity))]
        return {
            **self._named(self.encoder),
            "% over bound": 100 * over,
            "fp32 / bound": self.encoder["fp32"] / self.encoder["bound"],
            "fp32 / packed": smaller,
            "bar": bar(f"<= {OVER_BOUND:.0%} over, >= {at_least} x", met=over <= OVER_BOUND and smaller >= at_least),
        }

    def file_row(self) -> Row:
        smaller = self.file["fp32"] / self.file["packed"]
        found = "" if self.shape == "BERT-Base" else bar(f">= {SMALLER_FILE} x", met=smaller >= SMALLER_FILE)
        return {**self._named(self.file), "fp32 / packed": smaller, "bar": found}

    def _named(self, sizes: Mapping[str, float]) -> Row:
        named = {"shape": self.shape, "sparsity": f"{self.sparsity:.0%}", "weights": self.weights}
        return {**named, **{f"{form} MB": size / 1e6 for form, size in sizes.items()}}


def measured(
    shape: str, sparsity: float, weights: str, *, matrices: Mapping[str, np.ndarray], dense_bytes: int, path: Path
) -> Measured:
    """matrices: int8, as the file `path` holds them. dense_bytes: of the whole fp32 file."""
    raw = {layer: weight.tobytes() for layer, weight in matrices.items()}
    encoder = {
        "fp32": 4 * sum(map(len, raw.values())),
        "int8": sum(map(len, raw.values())),
        "zipped": sum(len(zlib.compress(r, 6)) for r in raw.values()),
        "packed": sum(len(packing.encode(r, 1)) for r in raw.values()),
        "bound": sum(map(entropy_bytes, matrices.values())),
    }
    file = {
        "fp32": dense_bytes,
        "int8": path.stat().st_size,
        "zipped": len(zlib.compress(path.read_bytes(), 6)),
        "packed": packing.packed_bytes(path),
    }
    return Measured(shape, sparsity, weights, encoder, file)


def computed(shape: str, sparsity: float, export: Path | None, folder: Path) -> Measured:
    """Dense weights pruned by magnitude and quantized: those of export/dense.onnx for MiniLM-L6, else random ones."""
    sizes, dense_file = Sizes.of(shape), export / "dense.onnx" if export and shape == "MiniLM-L6" else None
    dense = inspect.prunable_weights(dense_file) if dense_file else normal(sizes.matrices, seed=1)
    matrices = {}
    for name, weight in dense.items():
        tensor = torch.from_numpy(np.ascontiguousarray(weight))
        matrices[name] = quantization.quantize_weight(tensor * masks.magnitude_mask(tensor, sparsity)).numpy()
    path = folder / "int8.onnx"
    write_int8(path, sizes, matrices, initializers(dense_file) if dense_file else {})
    dense_bytes = 4 * (sum(matrix.size for matrix in matrices.values()) + sizes.float_weights)
    weights = "real, magnitude" if dense_file else "random normal"
    return measured(shape, sparsity, weights, matrices=matrices, dense_bytes=dense_bytes, path=path)


def exported(export: Path) -> Measured:
    """The int8 file of the pipeline."""
    matrices = {name: np.ascontiguousarray(w.T) for name, w in inspect.prunable_weights(export / "int8.onnx").items()}
    zeros = sum(np.count_nonzero(w == 0) for w in matrices.values()) / sum(w.size for w in matrices.values())
    dense_bytes = (export / "dense.onnx").stat().st_size
    path, weights = export / "int8.onnx", f"{export.name}/int8.onnx"
    return measured("as exported", float(zeros), weights, matrices=matrices, dense_bytes=dense_bytes, path=path)


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--export", type=Path, help="a folder with dense.onnx and int8.onnx of MiniLM-L6, e.g. data/export/r8"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = [computed(shape, sparsity, args.export, Path(folder)) for shape in ORDER for sparsity in SPARSITIES]
    if args.export:
        found.append(exported(args.export))
    publish("Size of the encoder", [row.encoder_row() for row in found], file=args.json)
    publish("Size of the file", [row.file_row() for row in found], file=args.json)


if __name__ == "__main__":
    main()
