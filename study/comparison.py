"""The cells of the study as rows of one table, and a verdict on each claim about two of them.

A cell is one variant by one criterion at one sparsity on one task; it has one score for each seed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol, TypeVar

from pipeline import paired
from pipeline.params.study import Claims

Cell = Mapping[str, Any]  # metrics of a cell, as `study.cell` returns them
Key = tuple[str, str, float]  # of a cell: variant, criterion, sparsity


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    variant: str
    criterion: str
    sparsity: float
    longer: int  # steps, of a row that learns the task in more of them; 0: in those of all other rows
    bits: int  # of a weight
    scores: dict[str, list[float]]  # by task, one for each seed, in [0, 1]
    replicates: dict[str, list[list[float]]]  # by task, for each seed the scores on rows that are drawn from the test split
    learning_rates: dict[str, float]  # by task
    bracketed: dict[str, bool]  # by task: whether a lower and a higher learning rate were tried
    steps: dict[str, int]  # by task, of one model
    once_steps: int  # of pre-training, paid once for all tasks
    encoder_bytes: float  # of the prunable matrices
    times_smaller: float  # dense encoder_bytes / encoder_bytes

    @property
    def name(self) -> str:
        """The variant, and what sets it apart from the other rows of this variant."""
        return self.variant + ("-int8" if self.bits == 8 else "") + ("-longer" if self.longer else "")

    @property
    def key(self) -> str:
        """Of the row in a file of metrics."""
        return f"{self.name}-{self.criterion}-{self.sparsity:g}"


class Scored(Protocol):
    """What a comparison reads of a row."""

    @property
    def scores(self) -> Mapping[str, Sequence[float]]: ...  # by task, one for each seed
    @property
    def replicates(self) -> Mapping[str, Sequence[Sequence[float]]]: ...  # as those of `Row`; empty if there are none
    @property
    def key(self) -> str: ...


S = TypeVar("S", bound=Scored)
ROUNDING = 1e-9  # of scores in [0, 1]: seeds that touch are not apart by a sum's last bit


def percent(sparsity: float) -> str:
    """A sparsity as a table has it, such as 85% or 97.5%: two sparsities never look the same."""
    return f"{100 * sparsity:g}%"


def spread(scores: Sequence[float]) -> float:
    """Half of the distance between the best and the worst seed."""
    return (max(scores) - min(scores)) / 2


def rows(cells: Mapping[Key, Mapping[str, Cell]], *, once_steps: Mapping[str, int]) -> list[Row]:
    """A row for each key, one more where every cell has an int8 model, and one more where a cell has models of more steps.

    cells: key -> task -> cell; exactly one of them is dense (sparsity 0). once_steps: by variant.
    """
    dense_bytes = _encoder_bytes(next(by_task for (_, _, sparsity), by_task in cells.items() if sparsity == 0))
    table = []
    for (variant, criterion, sparsity), by_task in cells.items():
        for of_task, bits, longer in _models(by_task):
            encoder_bytes = _encoder_bytes(of_task)
            row = Row(
                variant,
                criterion,
                sparsity,
                longer,
                bits,
                scores={task: list(cell["test"].values()) for task, cell in of_task.items()},
                replicates={task: list(cell["replicates"].values()) for task, cell in of_task.items()},
                learning_rates={task: cell["learning_rate"] for task, cell in of_task.items()},
                bracketed={task: cell["bracketed"] for task, cell in of_task.items()},
                steps={task: cell["steps"] for task, cell in of_task.items()},
                once_steps=once_steps[variant],
                encoder_bytes=encoder_bytes,
                times_smaller=dense_bytes / encoder_bytes,
            )
            table.append(row)
    return table


def _models(by_task: Mapping[str, Cell]) -> Iterator[tuple[Mapping[str, Cell], int, int]]:
    """Of the cells of one key, those of each row: with the row's bits, and its `longer`."""
    yield by_task, 32, 0
    if all("int8" in cell for cell in by_task.values()):
        yield {task: {**cell, **cell["int8"]} for task, cell in by_task.items()}, 8, 0
    for task, cell in by_task.items():
        if "longer" in cell:
            yield {task: {**cell, **cell["longer"]}}, 32, cell["longer"]["steps"]


def _encoder_bytes(by_task: Mapping[str, Cell]) -> float:
    """Mean over the tasks. They differ only where a weight became zero by chance."""
    return fmean(cell["encoder_bytes"] for cell in by_task.values())


@dataclass(frozen=True)
class Verdict:
    """The claim that `better` scores no lower than `worse`, on one task. where: what both have in common.

    difference: mean of `better` minus mean of `worse`. noise: sum of the two spreads. low, high: the 95 % interval of the
    difference over the test rows; None where it was not measured. smaller: size of `worse` / size of `better`, where the
    claim is of size as well; else 0.
    """

    better: str
    worse: str
    where: str
    task: str
    difference: float
    noise: float
    low: float | None = None
    high: float | None = None
    smaller: float = 0.0

    @property
    def says(self) -> str:
        """ "holds", "reversed", or "within the spread": of the seeds, or of the test rows."""
        if 0 < self.smaller <= 1:
            return "reversed"
        known = self.low is None or self.high is None or self.low > 0 or self.high < 0
        if abs(self.difference) <= self.noise + ROUNDING or not known:
            return "within the spread"
        return "holds" if self.difference > 0 else "reversed"


def verdicts(table: Sequence[Row], claims: Claims) -> Iterator[Verdict]:
    """When a model is pruned, how, and what int8 buys: each apart from the others."""
    in_float = [row for row in table if row.bits == 32]

    def setting(row: Row) -> str:
        return f"{row.criterion}, {percent(row.sparsity)}" + (f", {row.longer} steps" if row.longer else "")

    yield from compare(in_float, claims.when, what=lambda row: row.variant, where=setting)
    yield from compare(
        table, claims.how, what=lambda row: row.criterion, where=lambda row: f"{row.name}, {percent(row.sparsity)}"
    )
    yield from compare(
        [row for row in table if not row.longer],
        [(f"int8 at {percent(one)}", f"float at {percent(other)}") for one, other in claims.smaller],
        what=lambda row: f"{'int8' if row.bits == 8 else 'float'} at {percent(row.sparsity)}",
        where=lambda row: f"{row.variant}, {row.criterion}",
        size=lambda row: row.encoder_bytes,
    )


def compare(
    table: Sequence[S],
    claims: Iterable[Sequence[str]],
    *,
    what: Callable[[S], str],
    where: Callable[[S], str],
    size: Callable[[S], float] | None = None,
) -> Iterator[Verdict]:
    """A verdict for each claim (better, worse), wherever there is a row of both, and each task.

    what: of a row, the side that it takes in a claim. where: what rows must have in common to be compared. size: of a row,
    where the better one must be the smaller one too.
    """
    by_key = {(what(row), where(row)): row for row in table}
    for better, worse in claims:
        for place in dict.fromkeys(map(where, table)):
            left, right = by_key.get((better, place)), by_key.get((worse, place))
            if left is None or right is None:
                continue
            smaller = size(right) / size(left) if size else 0.0
            for task in left.scores:
                one, other = left.scores[task], right.scores[task]
                difference, noise = fmean(one) - fmean(other), spread(one) + spread(other)
                low, high = interval(left.replicates.get(task), right.replicates.get(task))
                yield Verdict(better, worse, place, task, difference, noise, low, high, smaller)


def interval(
    new: Sequence[Sequence[float]] | None, old: Sequence[Sequence[float]] | None
) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval of a difference of means over seeds. new, old: replicates by seed, on the same rows, if known."""
    if not new or not old:
        return None, None
    first, second = ([fmean(draw) for draw in zip(*seeds, strict=True)] for seeds in (new, old))
    found = paired.of_replicates(first, second, value=0.0)  # its interval alone is asked for
    return found.low, found.high
