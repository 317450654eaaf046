"""What stages leave for stages in JSON: what a task is, the ranges of activations; damaged."""

import json
from pathlib import Path
from random import Random

from pruneonce.models import checkpoint
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
RANGES = {"encoder.layer.0.attention.self.query": [-1.0, 1.0], "encoder.layer.0.output.dense": [0.0, 3.5]}


def make(draw: Random) -> Files:
    name, whole = ("task.json", draw.choice(TASKS)) if draw.random() < 0.5 else ("ranges.json", RANGES)
    if draw.random() < 0.7:
        return {name: damage.dumped(damage.document(whole, draw))}
    return {name: damage.data(json.dumps(whole).encode(), draw)}


def run(folder: Path) -> None:
    if Path("task.json").exists():
        kinds.load(Path())
    else:
        for low, high in checkpoint.load_ranges(Path()).values():
            assert low <= high
