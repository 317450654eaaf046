"""Differences of two models on the same rows, against scipy's, numpy's and a count of every outcome."""

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest, multinomial

from pipeline import paired
from pruneonce.errors import DataError


def rows(both: int, gained: int, lost: int, neither: int) -> tuple[str, str]:
    """What two models are right in: (new, old)."""
    return "1" * (both + gained) + "0" * (lost + neither), "1" * both + "0" * gained + "1" * lost + "0" * neither


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (0, 6), (7, 7), (14, 10), (3, 40), (900, 1000)])
def test_mcnemar_is_the_binomial_test_of_the_rows_that_differ(gained, lost):
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert paired.mcnemar(gained, lost) == pytest.approx(expected, rel=1e-12)
    assert paired.of_proportions(*rows(50, gained, lost, 3)).p == pytest.approx(expected, rel=1e-12)


def test_a_difference_of_accuracies_by_hand():
    """21 rows, of which one is won and seven are lost: (2 - 8) / 23 -+ 1.96 sqrt((10 / 23 - 36 / 529) / 23)."""
    found = paired.of_proportions(*rows(1, 1, 7, 12))
    assert found.rows == (1, 7)
    assert found.value == pytest.approx(-6 / 21)
    assert (found.low, found.high) == pytest.approx((-0.5084, -0.0133), abs=1e-4)


@pytest.mark.parametrize("chances", [(0.85, 0.05, 0.05, 0.05), (0.9, 0.02, 0.06, 0.02), (0.3, 0.2, 0.1, 0.4)])
def test_the_interval_covers_the_true_difference_as_often_as_it_says(chances):
    """Every outcome of 40 rows, with its chance."""
    total, truth = 40, chances[1] - chances[2]
    covered = 0.0
    for gained, lost in product(range(total + 1), repeat=2):
        same = total - gained - lost
        if same < 0:
            continue
        found = paired.of_proportions(*rows(same, gained, lost, 0))
        if found.low <= truth <= found.high:
            counts = [same, gained, lost]
            covered += multinomial.pmf(counts, total, [chances[0] + chances[3], *chances[1:3]])
    assert 0.94 <= covered <= 0.995  # of few rows that differ it says too little, never too much


def test_the_same_answers_differ_by_nothing():
    found = paired.of_proportions("1101", "1101")
    assert (found.value, found.p, found.noise) == (0.0, 1.0, True)
    assert found.low < 0 < found.high


def test_the_bootstrap_is_numpys_percentiles():
    rng = np.random.default_rng(0)
    old = rng.normal(0.9, 0.02, 200)
    new = old + rng.normal(0.01, 0.01, 200)
    found = paired.of_replicates(list(new), list(old), 0.012)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(new - old, [2.5, 97.5])))
    share = min(np.mean(new - old <= 0), np.mean(new - old >= 0))
    assert found.p == pytest.approx(2 * (share * 200 + 1) / 201)
    assert found.value == 0.012
    assert found.noise == (found.low < 0 < found.high)


@pytest.mark.parametrize(("shift", "noise"), [(0.05, False), (-0.05, False), (0.0, True)])
def test_the_bootstrap_tells_a_shift_from_noise(shift, noise):
    spread = np.random.default_rng(1).normal(0, 0.01, 200)
    found = paired.of_replicates([*map(float, 0.9 + shift + spread)], [0.9] * 200, shift)
    assert found.noise == noise
    assert found.p >= 2 / 201


def test_a_replicate_that_is_no_number_leaves_nothing_known():
    found = paired.of_replicates([0.5, math.nan, 0.5], [0.5, 0.5, 0.5], 0.0)
    assert math.isnan(found.low)
    assert math.isnan(found.p)
    assert not found.noise


def test_accuracy_is_counted_and_every_other_metric_resampled():
    new, old = ({"right": right, "replicates": [0.5, 0.6]} for right in ("110", "100"))
    assert paired.difference(new, old, "accuracy", (0.1, 0.2)).test == "McNemar's exact test"
    assert paired.difference(new, old, "mcc", (0.5, 0.25)).value == 0.25
    regression = {"right": None, "replicates": [0.5, 0.6]}
    assert paired.difference(regression, regression, "pearson", (0.5, 0.5)).test == "paired bootstrap of 2 resamples"


def test_the_words():
    found = paired.of_proportions(*rows(2105, 14, 10, 60))
    assert found.words() == "+0.18 points (95 % interval -0.27 to +0.64)"
    assert found.test_words() == "McNemar's exact test: 14 rows better, 10 worse, p = 0.54: inside the noise"
    worse = paired.of_proportions(*rows(1200, 10, 700, 200))
    assert worse.test_words() == "McNemar's exact test: 10 rows better, 700 worse, p < 0.0001: more than noise"
    assert paired.points(-0.00001) == "+0.00"


@pytest.mark.parametrize(("new", "old"), [("11", "1"), ("", "")])
def test_other_rows_are_an_error(new, old):
    with pytest.raises(DataError, match=f"answers to the same rows, found {len(new)} and {len(old)}"):
        paired.of_proportions(new, old)
    with pytest.raises(DataError, match="same replicates"):
        paired.of_replicates([0.5] * len(new), [0.5] * len(old), 0.0)
