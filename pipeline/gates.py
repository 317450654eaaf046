"""The gates of params.yaml: what the int8 model of a task must hold to become the champion, and what it holds.

Both the report and the promotion judge by `verdicts`.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import paired
from pipeline.params.document import Params
from pipeline.params.sections import Gates
from pruneonce.errors import DataError

DEPLOYED = ("int8", "int8_sparse")  # the int8 file, by ONNX Runtime's own kernels and by the sparse ones
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What one gate expected, and what it found, as numbers and as words."""

    name: str  # the key of the section `gates`
    title: str
    holds: bool
    expected: float | None
    found: float | None
    expected_words: str
    found_words: str

    def line(self) -> str:
        """The verdict in words, e.g. `packed size: expected at most 15.0 MB, found 13.3 MB`."""
        return f"{self.title}: expected {self.expected_words}, found {self.found_words}"


@dataclass(frozen=True)
class Measured:
    """What the pipeline wrote of a task: the files in data/ that the gates read."""

    task: str
    scores: Values  # data/metrics/evaluate
    latencies: Values  # data/latency
    answers: Values  # data/answers
    export: Values  # data/metrics/export


def files(task: str) -> dict[str, Path]:
    """The files of `Measured` by their field."""
    folders = {"scores": "metrics/evaluate", "latencies": "latency", "answers": "answers", "export": "metrics/export"}
    return {name: Path("data", folder, f"{task}.json") for name, folder in folders.items()}


def read(task: str) -> Measured:
    """Read what was measured of a task. Raises DataError for a file that is not there or holds something else."""
    found: dict[str, Any] = {}
    for name, path in files(task).items():
        try:
            found[name] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise DataError(
                f"expected {path}, which a run writes, found none that can be read ({why}). Get it with: "
                f"dvc repro evaluate@{task}"
            ) from None
    return Measured(task, **found)


def verdicts(
    task: str, scores: Values, latencies: Values, answers: Values, export_metrics: Values, gates: Gates
) -> list[Verdict]:
    """The verdict of each gate that needs no champion.

    A number that is not there, or is no number, holds no gate. Raises DataError where a file lacks what a gate reads.
    """
    try:
        return [
            _least(scores["int8"], answers, gates.least_score),
            _score(scores, answers, gates.most_score_drop),
            _sparsity(scores["int8"]["sparsity"], gates.least_sparsity),
            _parity(export_metrics["int8"]["parity"], gates.least_same_decisions),
            _size(scores["int8"]["packed_bytes"], gates.most_packed_bytes),
            _latency(latencies, gates.most_latency_ratio),
        ]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"expected what a run writes of {task} in {', '.join(map(str, files(task).values()))}, found a file without "
            f"{error}. Get them with: dvc repro evaluate@{task}"
        ) from None


def of(measured: Measured, gates: Gates) -> list[Verdict]:
    """`verdicts` of what was read."""
    m = measured
    return verdicts(m.task, m.scores, m.latencies, m.answers, m.export, gates)


def _least(int8: Values, answers: Values, least: float | None) -> Verdict:
    found, title = int8["score"], "score"
    if least is not None:
        return Verdict("least_score", title, found >= least, least, found, f"at least {least:.2%}", f"{found:.2%}")
    counted = answers["metric"] == paired.ACCURACY and answers["labels"]
    chance = max(Counter(answers["labels"]).values()) / len(answers["labels"]) if counted else 0.0
    low = int8["score_low"]
    than = f"{chance:.2%}, the share of the most frequent class" if counted else f"{chance:.0%}"
    words = f"{found:.2%} (95 % interval from {low:.2%})"
    return Verdict("least_score", title, low > chance, chance, low, f"more than {than}, with its interval", words)


def _score(scores: Values, answers: Values, most: float) -> Verdict:
    new, old = scores["int8"]["score"], scores["dense"]["score"]
    variants = answers["variants"]
    found = paired.difference(variants["int8"], variants["dense"], answers["metric"], (new, old))
    return Verdict(
        "most_score_drop",
        "score against dense",
        found.low > -most,
        most,
        max(0.0, -found.low),
        f"a drop of less than {100 * most:.2f} points, with its interval",
        f"{old:.2%} -> {new:.2%}, {found.words()}",
    )


def to_champion(found: paired.Difference, gates: Gates) -> Verdict:
    """The verdict on the difference of the int8 models, candidate - champion."""
    most = gates.most_drop_to_champion
    room = f"by more than {100 * most:.2f} points, " if most else ""
    return Verdict(
        "most_drop_to_champion",
        "score against the champion",
        found.noise or found.value >= -most,
        most,
        max(0.0, -found.value),
        f"no drop {room}that is more than noise",
        f"{found.words()}; {found.test_words()}",
    )


def _sparsity(found: float, least: float) -> Verdict:
    return Verdict("least_sparsity", "sparsity", found >= least, least, found, f"at least {least:.2%}", f"{found:.2%}")


def _parity(parity: Values, least: float) -> Verdict:
    found = parity["same_decision"]
    return Verdict(
        "least_same_decisions",
        "parity",
        found >= least,
        least,
        found,
        f"at least {least:.2%} of decisions as PyTorch's",
        f"{found:.2%} of {parity['rows']}",
    )


def _size(found: int, most: int) -> Verdict:
    expected, words = f"at most {most / 1e6:.3g} MB", f"{found / 1e6:.3g} MB"
    if expected.endswith(f" {words}"):
        expected, words = f"at most {most} bytes", f"{found} bytes"
    return Verdict("most_packed_bytes", "packed size", found <= most, most, found, expected, words)


def _latency(latencies: Values, most: float) -> Verdict:
    variant = min((name for name in DEPLOYED if name in latencies), key=lambda name: latencies[name]["median_ms"])
    found, dense = latencies[variant]["median_ms"], latencies["dense"]["median_ms"]
    kernels = "sparse kernels" if variant == "int8_sparse" else "ONNX Runtime's kernels"
    return Verdict(
        "most_latency_ratio",
        "latency",
        found / dense <= most,
        most,
        found / dense,
        f"at most {most:.2f} of dense",
        f"{found / dense:.2f} ({kernels}, {found:.1f} ms of {dense:.1f})",
    )


def failed(found: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts that do not hold."""
    return [verdict for verdict in found if not verdict.holds]


FAILED = "FAILED"  # in a summary


def summary(task: str, found: Sequence[Verdict]) -> str:
    """One line: all gates hold, or which ones failed, with what was expected and found."""
    broken = failed(found)
    if not broken:
        return f"gates: {task}: all {len(found)} hold"
    return f"gates: {task} {FAILED}: {'; '.join(verdict.line() for verdict in broken)}"


def judged(params: Params) -> dict[str, str]:
    """Task -> `summary`, of what data/ holds now. A task that cannot be judged has a line that says why."""
    lines = {}
    for task in params.tasks:
        try:
            lines[task] = summary(task, of(read(task), params.gates_of(task)))
        except DataError as error:
            lines[task] = f"gates: {task}: not judged: {error}"
    return lines


def table(found: Sequence[Verdict]) -> list[str]:
    """The verdicts as lines of a Markdown table."""
    rows = [(v.title, v.expected_words, v.found_words, "holds" if v.holds else "**FAILED**") for v in found]
    return [f"| {' | '.join(row)} |" for row in (("gate", "expected", "found", "verdict"), ("---",) * 4, *rows)]
