"""An evaluation that was killed computes no answer and no score of a finished variant again."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pruneonce.deployment import answer_files, measurements
from pruneonce.tasks import scores
from tests.integration import tiny
from tests.integration.tiny import TASK


class Killed(BaseException):
    """As sudden as the end of the process, for what runs in it."""


@pytest.fixture
def evaluate(first, tmp_path, monkeypatch):
    """Runs the stage on the tiny pipeline's files; its outs and its scratch folder are in `tmp_path`."""
    document = tiny.document()
    document["evaluate"] |= {"latency_runs": 10, "warmup_runs": 1, "operator_runs": 1}
    (command,) = [c for c in tiny.commands(document) if c.stage == "evaluate"]
    made = ("answers", "latency", "metrics")
    flags = {name: str(tmp_path / name if name in made else first.folder / path) for name, path in command.flags.items()}

    def run() -> tuple[Any, bytes]:
        metrics = tiny.run(replace(command, flags=flags), tmp_path, document)
        return metrics, (tmp_path / "answers").read_bytes()

    return run


def test_the_outs_are_those_of_an_evaluation_without_a_kill(first, evaluate, tmp_path, monkeypatch):
    asked, scored, killing = list[str](), list[int](), ["sparse", "score", "latency"]
    answers, summary, latencies = measurements.answers, scores.summary, measurements.latencies_ms

    def counted(running, batches, *, name):
        asked.append(variant := name.split()[2])
        for number, answer in enumerate(answers(running, batches, name=name)):
            if number == 1 and variant in killing:
                raise Killed
            yield answer

    def counted_summary(*args, **kwargs):
        if len(scored) == 2 and "score" in killing:
            raise Killed
        scored.append(1)
        return summary(*args, **kwargs)

    def killed_latencies(*args, **kwargs):
        if "latency" in killing:
            raise Killed
        return latencies(*args, **kwargs)

    monkeypatch.setattr(measurements, "answers", counted)
    monkeypatch.setattr(scores, "summary", counted_summary)
    monkeypatch.setattr(measurements, "latencies_ms", killed_latencies)
    expected = json.loads(first[f"metrics/evaluate/{TASK}.json"].read_text())
    variants = list(json.loads(first[f"latency/{TASK}.json"].read_text()).keys() - {"machine"})
    assert set(variants) >= {"dense", "sparse", "int8"}
    for stage, computed in [("sparse", ["dense", "sparse"]), ("score", None), ("latency", [])]:
        asked.clear()
        with pytest.raises(Killed):
            evaluate()
        killing.remove(stage)
        if computed is not None:
            assert asked == computed
        else:
            assert sorted(asked) == sorted(set(variants) - {"dense"})
    asked.clear()
    count = len(scored)
    metrics, answered = evaluate()
    assert (asked, len(scored)) == ([], count)
    assert count == len(variants)
    assert metrics == expected
    assert answered == first[f"answers/{TASK}.json"].read_bytes()
    assert not (tmp_path / "scratch").exists() or not list((tmp_path / "scratch").iterdir())


def test_logits_come_back_bit_by_bit(tmp_path):
    draw = np.random.default_rng(0)
    logits = [draw.standard_normal((3, 2)).astype(np.float32) for _ in range(1200)]
    logits[0] = np.array([[np.nan, -0.0], [np.inf, 1e-45]], np.float32)
    logits[1] = np.asfortranarray(draw.standard_normal((4, 7, 2)))
    answer_files.write_logits((({}, values) for values in logits), tmp_path / "x")
    found = answer_files.read_logits(tmp_path / "x")
    assert len(found) == 1200
    for one, other in zip(logits, found, strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    assert load_file(tmp_path / "x").keys() == {f"{number:09d}" for number in range(1200)}
    save_file({}, tmp_path / "empty")
    assert answer_files.read_logits(tmp_path / "empty") == []
