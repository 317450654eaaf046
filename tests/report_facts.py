"""Made-up tasks as the report knows them: all kinds, with and without the sparse kernels, and texts that are markup."""

import random
from collections.abc import Sequence
from typing import Any

from pipeline.gates import Measured
from pipeline.params.document import parse
from pipeline.params.reading import read_yaml
from pipeline.params.sections import METRICS
from pipeline.reporting.curves import Curve
from pipeline.reporting.facts import Facts, gather, task_facts
from pipeline.tracking.lock import Stage
from tests.conftest import ROOT

ATTACK = "</script><script>window.hurt = 1</script><img src=x onerror='window.hurt=1'><!-- \u2028 & \"quoted\""
VARIANTS = ("dense", "sparse", "int8", "int8_sparse")
CLASSES = ["<b>good</b>", "bad & ugly", "neither"]
MACHINE = {
    "processor": "A processor <1>",
    "cores": 2,
    "kernels": "avx512vnni",
    "versions": {"python": "3.11.7", "onnx": "1.23"},
}
MATRICES = [f"encoder.layer.{layer}.{name}" for layer in range(2) for name in ("attention.self.query", "output.dense")]


def measured(task: str, kind: str = "classification", *, variants: Sequence[str] = VARIANTS, rows: int = 200) -> Measured:
    """The files of a task. Every number differs from every other, by chance with a fixed seed."""
    draw, metric = random.Random(f"{task}{kind}"), METRICS[kind][0]
    scores: dict[str, Any] = {}
    latencies: dict[str, Any] = {"machine": MACHINE}
    answers: dict[str, Any] = {"task": task, "metric": metric, "rows": rows, "test_md5": "5" * 32, "variants": {}}
    labels = [draw.randrange(3) for _ in range(rows)]
    for place, variant in enumerate(variants):
        found = [label if draw.random() < 0.95 else (label + 1) % 3 for label in labels]
        right = "".join(str(int(a == b)) for a, b in zip(labels, found, strict=True))
        score = right.count("1") / rows
        own = {"decisions": found, "right": right} if kind == "classification" else {"decisions": None, "right": None}
        answers["variants"][variant] = {**own, "replicates": [round(score + draw.gauss(0, 0.01), 6) for _ in range(50)]}
        scores[variant] = {
            "metric": metric,
            "metrics": {name: score if name == metric else draw.random() for name in METRICS[kind]},
            "more_tests": {},
            "rows": rows,
            **{"score": score, "score_low": score - 0.02, "score_high": score + 0.02},
            "sparsity": 0.0 if variant == "dense" else 0.85,
            "sparsity_of": {name: 0.0 if variant == "dense" else 0.85 + draw.random() / 100 for name in MATRICES},
            **{"file_bytes": 90_000_000 // (place + 1), "packed_bytes": 3_500_000 // (2 * place + 1)},
        }
        median = 12.0 / (place + 1) + draw.random()
        latencies[variant] = {
            **{"median_ms": median, "p90_ms": median + 1, "p95_ms": median + 2, "p99_ms": median + 3},
            **{"resident_bytes": 10_000_000 * (place + 1), "tokens": 128, "threads": 2, "runs": 100},
            "operators_ms": {f"Operator{i}": draw.random() for i in range(10)},
        }
    answers |= {"labels": labels, "classes": CLASSES} if kind == "classification" else {"labels": None, "classes": []}
    pair = ATTACK if kind == "question_answering" else None
    answers["disagreements"] = [
        {"row": 7, "text": f"{ATTACK} {task}", "pair": pair, "label": CLASSES[0], "dense": CLASSES[0], "int8": CLASSES[1]}
    ]
    parity = {"same_decision": 0.995, "rows": 128, "relative_error": 0.01, "max_difference": 0.1, "max_logit": 6.0}
    return Measured(task, scores, latencies, answers, {variant: {"parity": parity} for variant in variants})


def stages(tasks: Sequence[str]) -> dict[str, Stage]:
    """Of dvc.lock: a model, data for each task, and what is made of them."""
    fetch = {"package": "a-model==1.2", "sha256": "a" * 64}
    found = [
        Stage("fetch@tiny-bert", {"stages/fetch.py": "c0"}, {"data/raw/tiny-bert": "m0.dir"}, {"fetch.tiny-bert": fetch})
    ]
    for task in tasks:
        local = {"path": "/home/somebody/secret.csv", "sha256": None}
        prepare = {"prepare_task": {"source": "files", "max_tokens": 64}, f"tasks.{task}.prepare_task": {"source": task}}
        tune = {"finetune": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-4}, f"tasks.{task}.finetune": {"epochs": 3}}
        raw, split, model, onnx = (
            f"data/raw/{task}",
            f"data/tasks/{task}",
            f"data/finetune/{task}",
            f"data/export/{task}/int8.onnx",
        )
        found += [
            Stage(f"fetch_local@{task}", {"given.csv": "g"}, {raw: f"r{task}"}, {f"fetch_local.{task}": local}),
            Stage(f"prepare_task@{task}", {raw: f"r{task}", "data/raw/tiny-bert": "m0.dir"}, {split: f"s{task}"}, prepare),
            Stage(f"finetune@{task}", {split: f"s{task}", "data/raw/tiny-bert": "m0.dir"}, {model: f"f{task}"}, tune),
            Stage(f"export@{task}", {model: f"f{task}", split: f"s{task}"}, {onnx: f"o{task}"}, {}),
            Stage(f"evaluate@{task}", {onnx: f"o{task}", split: f"s{task}"}, {f"data/latency/{task}.json": f"l{task}"}, {}),
        ]
    return {stage.name: stage for stage in found}


def facts(*tasks: Measured, title: str = "A model, pruned once", locked: dict[str, Stage] | None = None) -> Facts:
    """These tasks with the other numbers of the tiny profile. locked: dvc.lock."""
    params = parse(read_yaml(ROOT / "profiles/tiny.yaml"), "tiny")
    locked = stages([task.task for task in tasks]) if locked is None else locked
    found = [task_facts(task, params.gates, locked) for task in tasks]
    return gather(title, found, locked, common=params.common, sparsify=params.sparsify)


def curves(*tasks: str) -> list[Curve]:
    """Some trainings: one for all tasks with every column there is, and one of each task."""
    steps = [0, 5, 10]
    parts = ("loss", "hard", "soft", "hidden", "attention", "gradient_norm", "learning_rate", "sparsity")
    columns = {name: [1.5 / (place + 1), 1.25, 1.125] for place, name in enumerate(parts)}
    few = {"loss": [2.5, 2.25, 2.125], "learning_rate": [1e-5, 1e-4, 0.0]}
    return [Curve("sparsify", None, steps, columns), *(Curve("teach_task", task, steps, few) for task in tasks)]
