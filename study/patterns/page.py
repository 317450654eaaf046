"""The results of the study of patterns: rows of one table, as Markdown with verdicts and notes, as CSV points and as SVG."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pipeline import report
from study import drawing, results
from study.comparison import Verdict, percent, spread

NOTES = """\
Test scores of the int8 models in PyTorch: mean over {seeds} seeds ± half of the distance between the best and the worst.
In float: by task, the mean of the same models before quantization. Packed MB: the int8 file after `pruneonce pack`, mean
over the tasks. ms: by task, the median of {runs} calls at batch 1, {tokens} tokens, {threads} threads. All files were
measured in turns. Files of one pattern and sparsity have the same zeros. A comparison holds, or is reversed, where the means
differ by more than both spreads added.
"""


@dataclass(frozen=True)
class Row:
    """One pattern (`variant`) at one sparsity. By task: scores of the int8 models and of the float ones.

    There is one score for each seed, in [0, 1]. Of the first seed's int8 file: onnx_scores in ONNX Runtime, packed_bytes,
    and latencies_ms, by execution the medians by task.
    """

    variant: str
    sparsity: float
    scores: dict[str, list[float]]
    float_scores: dict[str, list[float]]
    onnx_scores: dict[str, float]
    packed_bytes: dict[str, int]
    latencies_ms: dict[str, dict[str, float]]

    @property
    def replicates(self) -> dict[str, list[list[float]]]:
        """None are kept of a cell."""
        return {}

    @property
    def key(self) -> str:
        """Of the row in a file of metrics."""
        return f"{self.variant}-{self.sparsity:g}"


def markdown(title: str, table: Sequence[Row], verdicts: Sequence[Verdict], notes: str) -> str:
    """The table, what each pattern costs against the first one, and the notes on the columns."""
    columns = ("in float", "packed MB", *(f"ms, {execution}" for execution in table[0].latencies_ms))
    lines = report.table(("pattern", "sparsity", *table[0].scores, *columns), [_cells(row) for row in table])
    return "\n".join([f"# {title}", "", *lines, "", *results.claims(verdicts), "", notes])


def _cells(row: Row) -> list[str]:
    scores = [results.score(scores) for scores in row.scores.values()]
    in_float = " / ".join(f"{fmean(scores):.2%}" for scores in row.float_scores.values())
    latencies = [" / ".join(f"{ms:.2f}" for ms in by_task.values()) for by_task in row.latencies_ms.values()]
    packed = f"{fmean(row.packed_bytes.values()) / 1e6:.2f}"
    return [row.variant, percent(row.sparsity), *scores, in_float, packed, *latencies]


def write_points(path: Path, table: Sequence[Row]) -> None:
    """Write score against latency as CSV, one line for each file and execution, for DVC's scatter plot."""
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["task", "pattern", "sparsity", "execution", "median_ms", "score", "spread"])
        for row, execution, task in _points(table):
            scores, ms = row.scores[task], row.latencies_ms[execution][task]
            numbers = f"{ms:.3f}", f"{fmean(scores):.5f}", f"{spread(scores):.5f}"
            out.writerow([task, row.variant, f"{row.sparsity:g}", execution, *numbers])


def draw(path: Path, table: Sequence[Row]) -> None:
    """Draw the same points as SVG: one line for each pattern and execution. The same table gives the same bytes."""
    panels: dict[str, dict[str, list[drawing.Point]]] = {task: {} for task in table[0].scores}
    for row, execution, task in _points(table):
        line = panels[task].setdefault(f"{row.variant}, {execution}", [])
        line.append((row.latencies_ms[execution][task], row.scores[task]))
    drawing.draw(path, panels, xlabel="latency, ms", axis=drawing.from_zero)


def _points(table: Sequence[Row]) -> Iterator[tuple[Row, str, str]]:
    """(row, execution, task)"""
    return ((row, execution, task) for row in table for execution in row.latencies_ms for task in row.scores)
