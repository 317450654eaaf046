"""A small int8 model, made up, whose layers have several patterns: `python -m docs.example_model FILE` writes it."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pruneonce.deployment.inspect import PRUNABLE
from pruneonce.deployment.provenance import ABOUT

HIDDEN, WORDS = 64, 200
SAID = {
    "format": 1,
    "task": "example",
    "variant": "int8",
    "kind": {"kind": "classification", "metric": "accuracy", "classes": ["no", "yes"]},
    "score": {"metric": "accuracy", "split": "validation", "value": 0.93},
    "sparsity": 0.85,
    "pattern": "1x4",
    "bits": 8,
    "max_tokens": 128,
}


def model() -> onnx.ModelProto:
    """Words that are looked up, one layer with zeros anywhere, one with zeros in blocks of 1x4, a classifier in float."""
    rng = np.random.default_rng(0)
    anywhere, blocks = rng.random((HIDDEN, HIDDEN)) > 0.85, np.repeat(rng.random((HIDDEN // 4, HIDDEN)) > 0.85, 4, 0)
    weights: dict[str, np.ndarray] = {
        "words.weight": rng.integers(1, 100, (WORDS, HIDDEN)).astype(np.float32),
        "layer.0.dense.weight": (rng.integers(1, 100, (HIDDEN, HIDDEN)) * anywhere).astype(np.int8),
        "layer.1.dense.weight": (rng.integers(1, 100, (HIDDEN, HIDDEN)) * blocks).astype(np.int8),
        "classifier.weight": rng.random((HIDDEN, 2), np.float32),
        "scale": np.full(HIDDEN, 0.01, np.float32),
        "step": np.array(0.05, np.float32),
        "zero": np.array(128, np.uint8),
    }
    nodes = [helper.make_node("Gather", ["words.weight", "input_ids"], ["x0"])]
    for i in range(2):
        nodes += [
            helper.make_node("QuantizeLinear", [f"x{i}", "step", "zero"], [f"q{i}"]),
            helper.make_node("DequantizeLinear", [f"q{i}", "step", "zero"], [f"d{i}"]),
            helper.make_node("DequantizeLinear", [f"layer.{i}.dense.weight", "scale"], [f"w{i}"], axis=1),
            helper.make_node("MatMul", [f"d{i}", f"w{i}"], [f"x{i + 1}"]),
        ]
    nodes.append(helper.make_node("MatMul", ["x2", "classifier.weight"], ["logits"]))
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", 2])
    stored = [numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    graph = helper.make_graph(nodes, "example", [ids], [logits], initializer=stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    prunable = json.dumps({f"layer.{i}.dense": "in,out" for i in range(2)})
    helper.set_model_props(proto, {PRUNABLE: prunable, ABOUT: json.dumps(SAID, sort_keys=True)})
    return proto


if __name__ == "__main__":
    onnx.save(model(), Path(sys.argv[1]))
