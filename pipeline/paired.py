"""Two models on the same test rows: the difference of their scores with its 95 % interval, and whether it is noise.

The two agree on most rows. So this difference is known much better than the two scores are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pruneonce.errors import DataError

NOISE_P = 0.05  # a difference with a larger p is taken for noise
NORMAL_97_5 = 1.959963984540054  # quantile of the normal distribution
ACCURACY = "accuracy"  # the only metric that is a proportion of rows


@dataclass(frozen=True)
class Difference:
    """The score of `new` - the score of `old`, with its 95 % interval and the p value of no difference."""

    value: float
    low: float
    high: float
    p: float
    test: str  # how p was found
    rows: tuple[int, int] | None  # that only `new` decides right, and only `old`; None where a row is not right or wrong

    @property
    def noise(self) -> bool:
        """Whether two models that are equally good would often differ as much."""
        return self.p >= NOISE_P

    def words(self) -> str:
        """The difference, e.g. `+0.18 points (95 % interval -0.27 to +0.64)`; a point is 0.01 of the score."""
        return f"{points(self.value)} points (95 % interval {points(self.low)} to {points(self.high)})"

    def test_words(self) -> str:
        """The test, e.g. `McNemar's exact test: 14 rows better, 10 worse, p = 0.54: inside the noise`."""
        rows = f"{self.rows[0]} rows better, {self.rows[1]} worse, " if self.rows else ""
        p = "p < 0.0001" if self.p < 1e-4 else f"p = {self.p:.2g}"
        return f"{self.test}: {rows}{p}: {self.known()}"

    def known(self) -> str:
        """Whether it is noise, in words."""
        return "inside the noise" if self.noise else "more than noise"


def points(value: float) -> str:
    """Hundredths of a score with their sign."""
    return f"{round(100 * value, 2) + 0.0:+.2f}"  # -0.0 + 0.0 is 0.0


def difference(new: Mapping[str, Any], old: Mapping[str, Any], metric: str, scores: tuple[float, float]) -> Difference:
    """Compare two variants of files in data/answers on one test split.

    metric: what the scores are. scores: of new and of old; a difference of accuracies is counted instead.
    Raises DataError where the two are not of the same rows.
    """
    if metric == ACCURACY and new["right"] and old["right"]:
        return of_proportions(new["right"], old["right"])
    return of_replicates(new["replicates"], old["replicates"], scores[0] - scores[1])


def of_proportions(new: str, old: str) -> Difference:
    """The difference of two accuracies. new, old: a digit for each row, 1 where the model is right.

    Source of the test: McNemar 1947, as the exact binomial test. Source of the interval: Bonett & Price 2012, the Wald
    interval of paired proportions after one row is added to each of the two counts of rows that differ.
    """
    _check_same(len(new), len(old), "rows")
    gained = sum(one > other for one, other in zip(new, old, strict=True))
    lost = sum(one < other for one, other in zip(new, old, strict=True))
    total = len(new) + 2
    up, down = (gained + 1) / total, (lost + 1) / total
    reach = NORMAL_97_5 * math.sqrt((up + down - (up - down) ** 2) / total)
    return Difference(
        value=(gained - lost) / len(new),
        low=max(-1.0, up - down - reach),
        high=min(1.0, up - down + reach),
        p=mcnemar(gained, lost),
        test="McNemar's exact test",
        rows=(gained, lost),
    )


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided p of McNemar's exact test: each row that differs is a toss of a coin."""
    tosses = gained + lost
    ways = sum(math.comb(tosses, heads) for heads in range(min(gained, lost) + 1))
    return min(1.0, 2 * ways / 2**tosses)


def of_replicates(new: Sequence[float], old: Sequence[float], value: float) -> Difference:
    """The difference of any metric. new, old: the metric on the same resampled rows, replicate by replicate.

    Source: the paired bootstrap, Efron & Tibshirani 1993, section 13.3; p is where the percentile interval reaches 0.
    """
    _check_same(len(new), len(old), "replicates")
    found = sorted(one - other for one, other in zip(new, old, strict=True))
    if any(map(math.isnan, found)):  # a correlation of answers that are all the same
        found = [math.nan]
    below, above = (sum(sign * each <= 0 for each in found) for sign in (1, -1))
    return Difference(
        value=value,
        low=percentile(found, 0.025),
        high=percentile(found, 0.975),
        p=math.nan if math.isnan(found[0]) else min(1.0, 2 * (min(below, above) + 1) / (len(found) + 1)),
        test=f"paired bootstrap of {len(new)} resamples",
        rows=None,
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The quantile of sorted numbers, linear between two of them, as numpy has it."""
    place = share * (len(ordered) - 1)
    left = math.floor(place)
    right = min(left + 1, len(ordered) - 1)
    return ordered[left] + (place - left) * (ordered[right] - ordered[left])


def _check_same(new: int, old: int, what: str) -> None:
    if new != old or not new:
        raise DataError(
            f"expected two models with answers to the same {what}, found {new} and {old}. Evaluate both with the same "
            "params."
        )
