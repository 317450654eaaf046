"""What stages leave for stages in JSON: what a task is, what a quantized model needs; damaged."""

import json
from pathlib import Path
from random import Random

from torch import nn

from pruneonce import quantization
from pruneonce.tasks import kinds
from tests.fuzz import damage
from tests.fuzz.case import Files

OUTS: tuple[str, ...] = ()
SECONDS = 10.0
SHARE = 10

TASKS = (
    {"kind": "classification", "metric": "accuracy", "classes": ["a", "b"]},
    {"kind": "regression", "metric": "pearson"},
    {"kind": "multi_label", "metric": "micro_f1", "classes": ["a", "b"]},
    {"kind": "token_classification", "metric": "entity_f1", "classes": ["O", "B-X"]},
)
RANGES = {"weight_bits": 8, "ranges": {"0": [-1.0, 1.0], "1": [0.0, 3.5]}}


def make(draw: Random) -> Files:
    name, whole = ("task.json", draw.choice(TASKS)) if draw.random() < 0.5 else ("quantization.json", RANGES)
    if draw.random() < 0.7:
        return {name: damage.dumped(damage.document(whole, draw))}
    return {name: damage.data(json.dumps(whole).encode(), draw)}


def run(folder: Path) -> None:
    if Path("task.json").exists():
        kinds.load(Path())
    else:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        quantization.load(model, Path())
        linears = quantization.quantized_linears(model)
        assert linears
        assert all(linear.low <= linear.high for linear in linears.values())
