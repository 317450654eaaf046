"""Which models are dominated: another one is at least as good in both ways, and better in one."""

from collections.abc import Sequence

from pipeline.report import Row


def dominated(rows: Sequence[Row], cost: str) -> list[list[str]]:
    """For each row the variants that dominate it: no higher `cost`, no lower score, and one of the two better.

    An empty list: the row is on the Pareto front. rows: the variants of one task.
    """
    return [[other["variant"] for other in rows if _beats(other, row, cost)] for row in rows]


def _beats(one: Row, other: Row, cost: str) -> bool:
    as_good = one[cost] <= other[cost] and one["score"] >= other["score"]
    return as_good and (one[cost] < other[cost] or one["score"] > other["score"])
