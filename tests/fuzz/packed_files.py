"""Ten valid packed files of two tiny models: other patterns, bits and sizes. Made, not kept: it takes half a minute.

A file of a model is exported once; the zeros of a pattern are then written into its stored matrices.
"""

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from transformers import AutoConfig, AutoModelForSequenceClassification

from pruneonce import quantization
from pruneonce.deployment import execution, export, packing
from pruneonce.sparsity import masks
from tests.conftest import PRUNABLE, TINY, cpu_engine, token_batch

Zeros = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # weight[in, out] -> the same with zeros
LEAST = 1 << 9  # numbers of a matrix that gets zeros: not the heads of the task


def write(folder: Path) -> list[Path]:
    """Write the ten files. Those that are there already are kept: they are the same for the same code."""
    folder.mkdir(parents=True, exist_ok=True)
    there = sorted(folder.glob("*.packed"))
    if len(there) == 10:
        return there
    for name, content in _files():
        (folder / f"{name}.packed").write_bytes(b"".join(packing.packed(io.BytesIO(content))))
    return sorted(folder.glob("*.packed"))


def _files() -> Iterator[tuple[str, bytes]]:
    floats, words = (_exported(layers=2, hidden=48, quantized=quantized) for quantized in (False, True))
    small_floats, small = (_exported(layers=1, hidden=16, quantized=quantized) for quantized in (False, True))
    yield "float-dense", floats
    yield "float-unstructured", _with_zeros(floats, _unstructured(0.85))
    yield "small-float-2-4", _with_zeros(small_floats, _grouped(2, 4))
    yield "int8-dense", words
    yield "int8-unstructured", _with_zeros(words, _unstructured(0.9))
    yield "int8-1x4", _with_zeros(words, _blocks(4, 1))
    yield "small-int8-4x1", _with_zeros(small, _blocks(1, 4))
    yield "small-int8-4-8", _with_zeros(small, _grouped(4, 8))
    yield "small-4-bits", _with_zeros(small, lambda weight, draw: _unstructured(0.8)(weight // 16, draw))
    accelerated = execution.accelerated(_with_zeros(small, _unstructured(0.9)), execution="sparse", threads=1)
    assert accelerated is not None, "the library of the sparse kernels is needed: python -m kernels.build"
    yield "small-accelerated", accelerated


def _exported(*, layers: int, hidden: int, quantized: bool) -> bytes:
    """A classifier with random weights as an ONNX file."""
    torch.manual_seed(1)
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": 2 * hidden}
    config = AutoConfig.from_pretrained(TINY / "model", num_labels=3, **sizes)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    if quantized:
        masks.mask_linears(model, PRUNABLE, quantization.FakeQuantLinear)
        quantization.calibrate(model, [token_batch(seed, 8, 12) for seed in range(2)], engine=cpu_engine())
        quantization.freeze(model)
        quantization.to_int8(model)
    with tempfile.TemporaryDirectory() as folder:
        export.to_onnx(model, Path(folder, "model.onnx"))
        proto = onnx.load(Path(folder, "model.onnx"))
    onnx.helper.set_model_props(proto, {"pruneonce.about": json.dumps({"format": 1, "task": "topic"})})
    return proto.SerializeToString()


def _with_zeros(model: bytes, zeros: Zeros) -> bytes:
    proto, draw = onnx.load_model_from_string(model), np.random.default_rng(1)
    for tensor in proto.graph.initializer:
        if len(tensor.dims) == 2 and np.prod(tensor.dims) >= LEAST:
            weight = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(zeros(weight, draw)), tensor.name))
    return proto.SerializeToString()


def _unstructured(share: float) -> Zeros:
    return lambda weight, draw: weight * (draw.random(weight.shape) >= share).astype(weight.dtype)


def _blocks(rows: int, columns: int) -> Zeros:
    def zeros(weight: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        kept = draw.random((-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))) < 0.2
        return weight * np.kron(kept, np.ones((rows, columns)))[: weight.shape[0], : weight.shape[1]].astype(weight.dtype)

    return zeros


def _grouped(most: int, size: int) -> Zeros:
    """Of `size` neighbouring inputs `most` are kept."""
    return lambda weight, draw: weight * (np.arange(len(weight))[:, None] % size < most).astype(weight.dtype)
