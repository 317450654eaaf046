"""The curves of a training: what data/plots holds, as DVC plots it."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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


def read_all(shared: dict[str, Path], folders: dict[str, Path], tasks: Sequence[str]) -> Iterator[Curve]:
    """shared: stage -> its file. folders: stage of a task -> the folder with a file for each task."""
    paths: list[tuple[str, str | None, Path]] = [(stage, None, path) for stage, path in shared.items()]
    paths += [(stage, task, folder / f"{task}.csv") for task in tasks for stage, folder in folders.items()]
    for stage, task, path in paths:
        if curve := read(stage, task, path):
            yield curve
