"""What a run measures of a small task, as the files in data/ hold it: a model that is good, and what one changes of it."""

import json
from pathlib import Path
from typing import Any

from pipeline import gates
from pipeline.gates import Measured
from pipeline.params.sections import Gates

GATES = Gates(
    least_score=0.9,
    most_score_drop=0.03,
    least_sparsity=0.84,
    least_same_decisions=0.95,
    most_packed_bytes=15_000_000,
    most_latency_ratio=0.6,
    most_drop_to_champion=0.0,
)
ROWS = 1000


def right(wrong: int, first: int = 0) -> str:
    """One digit a row; `wrong` rows from the row `first` on are wrong."""
    return "".join("0" if first <= row < first + wrong else "1" for row in range(ROWS))


def measured(int8: str | None = None, dense: str | None = None, task: str = "topic", test_md5: str = "5" * 32) -> Measured:
    """A task whose gates hold. int8, dense: the rows that are decided right."""
    rights = {"dense": dense or right(30), "sparse": dense or right(30), "int8": int8 or right(32)}
    scores = {
        variant: {"metric": "accuracy", "score": found.count("1") / ROWS, "score_low": found.count("1") / ROWS - 0.01}
        | {"sparsity": 0.85, "packed_bytes": 13_299_400}
        for variant, found in rights.items()
    }
    scores["dense"] |= {"sparsity": 0.0, "packed_bytes": 75_889_681}
    answers = {
        "task": task,
        "kind": "classification",
        "metric": "accuracy",
        "test_md5": test_md5,
        "rows": ROWS,
        "classes": ["no", "yes"],
        "labels": [1] * ROWS,
        "variants": {
            variant: {"decisions": [int(digit) for digit in found], "right": found, "replicates": [0.97, 0.98]}
            for variant, found in rights.items()
        },
        "disagreements": [],
    }
    latencies = {variant: {"median_ms": ms} for variant, ms in {"dense": 13.2, "sparse": 13.1, "int8": 6.6}.items()}
    export = {
        "int8": {
            "parity": {"same_decision": 1.0, "rows": 128, "relative_error": 0.01, "max_difference": 0.1, "max_logit": 6.0}
        }
    }
    return Measured(task, scores, {**latencies, "machine": {"cores": 2}}, answers, export)


def write(found: Measured) -> dict[str, Path]:
    """Write the files of a task, as the stages do. Returns them by field."""
    paths = gates.files(found.task)
    for name, path in paths.items():
        value: Any = getattr(found, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value) + "\n")
    return paths
