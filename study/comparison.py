"""The cells of the study as rows of one table, and a verdict on each claim about two variants.

A cell is one variant at one sparsity on one task; it has one score for each seed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

Cell = Mapping[str, Any]  # metrics of a cell: test, learning_rate, steps, encoder_bytes; int8 if the variant has it


@dataclass(frozen=True)
class Row:
    """One line of the table. By task: scores (one for each seed, in [0, 1]), learning rates, steps of one model.

    once_steps: steps of pre-training, paid once for all tasks. encoder_bytes: bytes of the prunable matrices.
    times_smaller: dense encoder_bytes / encoder_bytes.
    """

    variant: str
    sparsity: float
    scores: dict[str, list[float]]
    learning_rates: dict[str, float]
    steps: dict[str, int]
    once_steps: int
    encoder_bytes: float
    times_smaller: float


class Scored(Protocol):
    """What a verdict reads of a row."""

    @property
    def variant(self) -> str: ...
    @property
    def sparsity(self) -> float: ...
    @property
    def scores(self) -> Mapping[str, Sequence[float]]: ...  # by task, one for each seed


def spread(scores: Sequence[float]) -> float:
    """Half of the distance between the best and the worst seed."""
    return (max(scores) - min(scores)) / 2


def rows(cells: Mapping[tuple[str, float], Mapping[str, Cell]], *, once_steps: Mapping[str, int]) -> list[Row]:
    """One row for each variant and sparsity; one more, named variant-int8, where every cell has an int8 model.

    cells: (variant, sparsity) -> task -> cell; exactly one of them is dense (sparsity 0). once_steps: by variant.
    """
    dense_bytes = _encoder_bytes(next(by_task for (_, sparsity), by_task in cells.items() if sparsity == 0))
    table = []
    for (variant, sparsity), by_task in cells.items():
        models = {variant: by_task}
        if all("int8" in cell for cell in by_task.values()):
            models[f"{variant}-int8"] = {task: {**cell, **cell["int8"]} for task, cell in by_task.items()}
        for name, by_task in models.items():
            encoder_bytes = _encoder_bytes(by_task)
            row = Row(
                variant=name,
                sparsity=sparsity,
                scores={task: list(cell["test"].values()) for task, cell in by_task.items()},
                learning_rates={task: cell["learning_rate"] for task, cell in by_task.items()},
                steps={task: cell["steps"] for task, cell in by_task.items()},
                once_steps=once_steps[variant],
                encoder_bytes=encoder_bytes,
                times_smaller=dense_bytes / encoder_bytes,
            )
            table.append(row)
    return table


def _encoder_bytes(by_task: Mapping[str, Cell]) -> float:
    """Mean over the tasks. They differ only where a weight became zero by chance."""
    return fmean(cell["encoder_bytes"] for cell in by_task.values())


@dataclass(frozen=True)
class Verdict:
    """The claim that `better` scores no lower than `worse`, on one task at one sparsity.

    difference: mean of `better` minus mean of `worse`. noise: sum of the two spreads.
    """

    better: str
    worse: str
    task: str
    sparsity: float
    difference: float
    noise: float

    @property
    def says(self) -> str:
        """ "holds", "reversed", or "within the spread" where the difference is not larger than the noise."""
        if abs(self.difference) <= self.noise:
            return "within the spread"
        return "holds" if self.difference > 0 else "reversed"


def verdicts(table: Sequence[Scored], claims: Sequence[Sequence[str]]) -> Iterator[Verdict]:
    """A verdict for each claim (better, worse), each sparsity that both variants have, and each task."""
    by_key = {(row.variant, row.sparsity): row.scores for row in table}
    for better, worse in claims:
        for sparsity in dict.fromkeys(row.sparsity for row in table):
            high, low = by_key.get((better, sparsity), {}), by_key.get((worse, sparsity), {})
            for task in high if low else ():
                difference = fmean(high[task]) - fmean(low[task])
                yield Verdict(better, worse, task, sparsity, difference, spread(high[task]) + spread(low[task]))
