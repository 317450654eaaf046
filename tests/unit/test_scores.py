"""Intervals against published numbers; the fewest bytes there can be, worked by hand."""

import numpy as np
import pytest

from benchmarks.size import entropy_bytes
from pruneonce.tasks.scores import bootstrap_interval, wilson_interval


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_one_example_has_no_spread():
    assert bootstrap_interval(lambda rows: 0.25, 1, resamples=10, seed=0) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("values", "bits"),
    [([7] * 16, 0), ([0, 1] * 8, 16), ([0, 0, 0, 1] * 4, 16 * 0.8112781), ([0, 1, 2, 3] * 2, 16), ([-1, 0, 0, 5], 6)],
)
def test_entropy_bytes(values, bits):
    assert entropy_bytes(np.array(values, np.int8)) == pytest.approx(bits / 8, rel=1e-6)
