"""Bytes of what ships, beside the entropy of the very same weights: fp32, int8, int8 zipped (zlib 6), int8 packed.

Encoder: its prunable matrices, and nothing else. Bound: the entropy of every matrix by itself (`entropy_bytes`), that
is of its mask and of the values that it keeps. Whole file: everything else too, its tables in int8; fp32: the dense file.
Weights: normal random numbers, or with `--export data/export/r8` the real dense ones for MiniLM-L6, pruned by magnitude and
quantized by this library (all but matrices and tables stays random); and, as a row of its own, its int8 file as it ships.
"""

import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks.measuring import Row, arguments, bar, publish
from pruneonce import quantization
from pruneonce.deployment import embeddings, inspect, packing
from pruneonce.deployment.export import OPSET
from pruneonce.sparsity import masks

SPARSITIES = (0.85, 0.90)
VOCABULARY, POSITIONS, TYPES = 30522, 512, 2
OVER_BOUND = 0.08  # at most: packed encoder / bound - 1
SMALLER = {0.85: 18, 0.90: 25}  # at least, by sparsity: fp32 encoder / packed encoder
SMALLER_FILE = 6  # at least: fp32 file / packed file, of MiniLM-L6


@dataclass(frozen=True)
class Shape:
    """A BERT by its sizes."""

    name: str
    layers: int
    hidden: int
    intermediate: int

    def matrices(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Name and [out, in] of every matrix of the encoder."""
        h, i = self.hidden, self.intermediate
        for layer in range(self.layers):
            yield from ((f"{layer}.{name}", (h, h)) for name in ("query", "key", "value", "output"))
            yield from ((f"{layer}.up", (i, h)), (f"{layer}.down", (h, i)))

    def others(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """What stays float besides the tables: biases, layer norms, pooler, head."""
        h = self.hidden
        yield from ((f"{name}.bias", (rows,)) for name, (rows, _) in self.matrices())
        yield from ((f"norm.{i}", (2, h)) for i in range(2 * self.layers + 1))
        yield from (("pooler", (h, h)), ("pooler.bias", (h,)), ("head", (8, h)), ("head.bias", (8,)))


SHAPES = (Shape("MiniLM-L6", 6, 384, 1536), Shape("BERT-Base", 12, 768, 3072))


def entropy_bytes(values: np.ndarray) -> float:
    """Return n · H / 8, the fewest bytes of a code for independent values. H: bits, -Σ p log2 p over the values that occur.

    H is the entropy of the mask plus that of the values: H(zero or not) + P(not zero) · H(value if not zero).
    Source: Shannon 1948, sections 6 (the decomposition of a choice) and 9.
    """
    _, counts = np.unique(values, return_counts=True)
    return float((counts * np.log2(values.size / counts)).sum() / 8)


def random_weights(shape: Shape) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    return {name: generator.standard_normal(size, np.float32) for name, size in shape.matrices()}


def table(name: str, shape: Shape, rows: int, stored: Mapping[str, np.ndarray]) -> np.ndarray:
    made = np.random.default_rng(2).standard_normal((rows, shape.hidden), np.float32)
    return next((array for key, array in stored.items() if f"{name}_embeddings" in key), made)


def write_int8(path: Path, shape: Shape, matrices: Mapping[str, np.ndarray], stored: Mapping[str, np.ndarray]) -> None:
    """An ONNX file with every tensor of the model, its tables gathered, without its other nodes (some 60 kB)."""
    generator = np.random.default_rng(3)
    tables = {
        n: table(n, shape, rows, stored) for n, rows in (("word", VOCABULARY), ("position", POSITIONS), ("type", TYPES))
    }
    tensors = {**tables, **matrices, **{f"{n}.scale": generator.random(len(w), np.float32) for n, w in matrices.items()}}
    tensors |= {name: generator.standard_normal(size, np.float32) for name, size in shape.others()}
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["length"])
    rows = [helper.make_tensor_value_info(f"{n}_rows", TensorProto.FLOAT, ["length", shape.hidden]) for n in tables]
    nodes = [helper.make_node("Gather", [n, "ids"], [f"{n}_rows"]) for n in tables]
    stored_tensors = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, shape.name, [ids], rows, stored_tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)]), path)
    embeddings.quantize(path)


@dataclass(frozen=True)
class Sizes:
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
) -> Sizes:
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
    return Sizes(shape, sparsity, weights, encoder, file)


def computed(shape: Shape, sparsity: float, export: Path | None, folder: Path) -> Sizes:
    """Dense weights pruned by magnitude and quantized."""
    real = export is not None and shape.name == "MiniLM-L6"
    dense = inspect.prunable_weights(export / "dense.onnx") if real and export else random_weights(shape)
    stored = initializers(export / "dense.onnx") if real and export else {}
    matrices = {}
    for name, weight in dense.items():
        tensor = torch.from_numpy(np.ascontiguousarray(weight))
        pruned = tensor * masks.magnitude_mask(tensor, sparsity)
        matrices[name] = quantization.quantize_weight(pruned).numpy()
    path = folder / "int8.onnx"
    write_int8(path, shape, matrices, stored)
    tables = shape.hidden * (VOCABULARY + POSITIONS + TYPES)
    others = sum(int(np.prod(size)) for _, size in shape.others())
    dense_bytes = 4 * (sum(w.size for w in matrices.values()) + tables + others)
    weights = "real, magnitude" if real else "random normal"
    return measured(shape.name, sparsity, weights, matrices=matrices, dense_bytes=dense_bytes, path=path)


def shipped(export: Path) -> Sizes:
    """The int8 file of the pipeline as it is."""
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
        found = [computed(shape, sparsity, args.export, Path(folder)) for shape in SHAPES for sparsity in SPARSITIES]
    if args.export:
        found.append(shipped(args.export))
    publish("Size of the encoder", [sizes.encoder_row() for sizes in found], file=args.json)
    publish("Size of the file", [sizes.file_row() for sizes in found], file=args.json)


if __name__ == "__main__":
    main()
