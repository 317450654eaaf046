"""Small models that answer texts, of every kind of task: as `export` writes them, with a tokenizer inside. No training."""

import functools
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pruneonce.deployment import packing
from pruneonce.deployment.provenance import ABOUT, TOKENIZER
from pruneonce.models import checkpoint
from tests.conftest import TINY

CLASSES = ["O", "B-X", "I-X"]
KINDS: dict[str, dict[str, Any]] = {
    "classification": {"metric": "accuracy", "classes": CLASSES},
    "multi_label": {"metric": "micro_f1", "classes": CLASSES},
    "regression": {"metric": "pearson"},
    "token_classification": {"metric": "entity_f1", "classes": CLASSES},
    "question_answering": {
        **{"metric": "f1", "stride_tokens": 4, "n_best": 5},
        **{"max_answer_tokens": 10, "null_threshold": 0.0},
    },
    "embedding": {"metric": "spearman"},
}


def said(kind: str, *, pair: str | None = None) -> dict[str, Any]:
    """What a file of this kind says of itself."""
    return {
        **{"format": 1, "task": "topic", "variant": "int8", "pattern": "2:4", "sparsity": 0.5, "bits": 8, "max_tokens": 24},
        "kind": {"kind": kind, **KINDS[kind]},
        "columns": {"text": "body", "label": "label", "pair": pair},
        "score": {"metric": "accuracy", "value": 0.5, "split": "validation"},
        "deps": {"data/raw/topic": "d41d8cd98f00b204e9800998ecf8427e.dir"},
    }


@functools.cache
def tokenizer() -> str:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.load_tokenizer(TINY / "model").save_pretrained(folder)
        return Path(folder, "tokenizer.json").read_text()


@functools.cache
def graph(kind: str) -> bytes:
    """The ONNX file alone: the mean of the tokens' vectors, times a matrix; or each of them, times a matrix."""
    draw, outputs = (
        np.random.default_rng(1),
        {"regression": 1, "question_answering": 1, "embedding": 8}.get(kind, len(CLASSES)),
    )
    nodes = [helper.make_node("Gather", ["words", "input_ids"], ["vectors"])]
    names = {"question_answering": ["start_logits", "end_logits"], "embedding": ["embedding"]}.get(kind, ["logits"])
    stored = {"words": draw.standard_normal((162, 8))} | {f"w{i}": draw.standard_normal((8, outputs)) for i in range(2)}
    read = "vectors"
    if kind in ("classification", "multi_label", "regression", "embedding"):
        nodes.append(helper.make_node("ReduceMean", ["vectors", "one"], ["mean"], keepdims=0))
        read = "mean"
    for number, name in enumerate(names):
        if len(names) == 1:
            nodes.append(helper.make_node("MatMul", [read, "w0"], [name]))
        else:
            nodes.append(helper.make_node("MatMul", [read, f"w{number}"], [f"p{number}"]))
            nodes.append(helper.make_node("Squeeze", [f"p{number}", "last"], [name]))
    nodes.append(helper.make_node("Identity", ["attention_mask"], ["unread"]))
    axes: dict[str, list[str | int]] = {
        name: ["batch", "length"] if len(names) == 2 else ["batch", "length", outputs][: 3 if read == "vectors" else 1]
        for name in names
    }
    if read == "mean":
        axes = {names[0]: ["batch", outputs]}
    arrays = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in stored.items()]
    arrays += [numpy_helper.from_array(np.array([n], np.int64), name) for name, n in (("one", 1), ("last", -1))]
    made = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in axes.items()],
        arrays,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()


def file(kind: str, entries: dict[str, str] | None = None, *, pair: str | None = None) -> bytes:
    """An exported file. entries: of its metadata; None: those that belong there."""
    proto = onnx.load_model_from_string(graph(kind))
    whole = {ABOUT: json.dumps(said(kind, pair=pair)), TOKENIZER: tokenizer()}
    for key, value in (whole if entries is None else entries).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    return proto.SerializeToString()


def packed(content: bytes) -> bytes:
    return b"".join(packing.packed(io.BytesIO(content)))
