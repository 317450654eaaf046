"""The curves of a training: what data/plots holds, as DVC plots it."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SHARED = ("prepare_teacher", "sparsify")
OF_TASK = ("teach_task", "finetune", "quantize")
APART = ("learning_rate", "sparsity", "gradient_norm")  # every other column is the loss, or a part of it


@dataclass(frozen=True)
class Curve:
    """One training. task: None where it serves all tasks. columns: name -> a value for each of `steps`."""

    stage: str
    task: str | None
    steps: list[int]
    columns: dict[str, list[float]]

    @property
    def losses(self) -> list[str]:
        """The loss and its parts."""
        return [name for name in self.columns if name not in APART]


def read(stage: str, task: str | None, path: Path) -> Curve | None:
    """The curve in a CSV file; None where no step was taken, as with `epochs: 0`."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return None
    columns = {name: [float(row[name]) for row in rows] for name in rows[0] if name != "step"}
    return Curve(stage, task, [int(row["step"]) for row in rows], columns)


def read_all(folder: Path, tasks: Sequence[str]) -> Iterator[Curve]:
    """Every training of these tasks, and those that serve them all. One that took no step has no curve."""
    names: list[tuple[str, str | None]] = [(stage, None) for stage in SHARED]
    names += [(stage, task) for task in tasks for stage in OF_TASK]
    for stage, task in names:
        path = folder / stage / f"{task}.csv" if task else folder / f"{stage}.csv"
        if path.exists() and (curve := read(stage, task, path)):  # with an imported model nobody sparsifies
            yield curve
