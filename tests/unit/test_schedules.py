"""Schedules against numbers worked by hand and against the equations of the paper in exact fractions."""

from fractions import Fraction

import pytest

from pruneonce.sparsity.gradual import cubic_sparsity, is_pruning_step
from pruneonce.training.schedules import linear_decay, rewound_decay


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (9, 0.0),
        (10, 0.1),
        (12, 0.9 - 0.8 * 0.512),
        (15, 0.8),
        (18, 0.9 - 0.8 * 0.008),
        (20, 0.9),
        (1000, 0.9),
    ],
)
def test_cubic_sparsity_by_hand(step, expected):
    found = cubic_sparsity(step, begin=10, end=20, initial=0.1, target=0.9)
    assert found == pytest.approx(expected, abs=1e-12)


def test_fault_4_begin_equals_end_is_one_shot():
    """The reference divides by zero when the ramp has no length."""
    ramp = {"begin": 5, "end": 5}
    assert [cubic_sparsity(t, **ramp, initial=0.5, target=0.8) for t in (4, 5, 6)] == [0.0, 0.8, 0.8]
    rates = [rewound_decay(t, steps=10, warmup=0, peak=1.0, **ramp, every=1) for t in range(10)]
    assert rates == pytest.approx([(10 - t) / 10 for t in range(10)])


@pytest.mark.parametrize(
    "wrong",
    [
        {"begin": 5, "end": 4},
        {"begin": -1, "end": 4},
        {"initial": 0.6, "target": 0.5},
        {"initial": -0.1},
        {"target": 1.1},
    ],
)
def test_cubic_sparsity_rejects_what_is_out_of_order(wrong):
    with pytest.raises(ValueError, match="need 0 <= begin <= end"):
        cubic_sparsity(0, **{"begin": 0, "end": 10, "initial": 0.0, "target": 0.9} | wrong)


def test_a_first_jump_is_held_until_the_cubic_rises_from_it():
    """oBERT's 70 %, then to 90 %: at a third of the ramp 0.9 - 0.2 * (2/3)^3, at two thirds 0.9 - 0.2 / 27."""
    found = [cubic_sparsity(t, begin=2, end=5, initial=0.7, target=0.9) for t in range(7)]
    assert found == pytest.approx([0, 0, 0.7, 0.9 - 1.6 / 27, 0.9 - 0.2 / 27, 0.9, 0.9])


@pytest.mark.parametrize(
    ("begin", "freeze", "every", "steps"),
    [
        (0, 80, 20, [0, 20, 40, 60, 80]),
        (5, 30, 10, [5, 15, 25, 30]),  # the masks that freeze are fresh
        (5, 5, 10, [5]),
        (0, 3, 1, [0, 1, 2, 3]),
    ],
)
def test_masks_are_recomputed_from_begin_until_they_freeze(begin, freeze, every, steps):
    """Also after the target is reached, which this does not depend on; never after `freeze`."""
    assert [t for t in range(100) if is_pruning_step(t, begin=begin, freeze=freeze, every=every)] == steps


def test_linear_decay_by_hand():
    rates = [linear_decay(t, steps=10, warmup=4, peak=2.0) for t in range(10)]
    assert rates == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 10 / 6, 8 / 6, 1.0, 4 / 6, 2 / 6])


def test_linear_decay_without_warmup_starts_at_the_peak():
    assert [linear_decay(t, steps=4, warmup=0, peak=1.0) for t in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_rewound_decay_by_hand():
    """T = 12, w = 2, pruned at 4, 6, 8 (to 9): T' = 12 - 5 = 7, so the divisor is 5; each case of the definition."""
    rates = [rewound_decay(t, steps=12, warmup=2, peak=5.0, begin=4, end=9, every=2) for t in range(12)]
    warm, before, rewound, after = [0, 2.5], [5, 4], [3, 2, 3, 2, 3], [3, 2, 1]
    assert rates == pytest.approx([*warm, *before, *rewound, *after])


REFERENCE = {"steps": 100_000, "warmup": 1_000, "peak": 1.0, "begin": 0, "end": 50_000, "every": 1_000}


@pytest.mark.parametrize(
    ("step", "numerator"),
    [
        (500, 24_500),  # warm-up: one half
        (1_000, 50_000),
        (1_999, 49_001),
        (2_000, 50_000),
        (49_999, 49_001),
        (50_000, 50_000),
        (75_000, 25_000),
        (99_999, 1),
        (100_000, 0),
        (120_000, 0),
    ],
)
def test_rewound_decay_with_the_shipped_numbers_of_the_reference(step, numerator):
    assert rewound_decay(step, **REFERENCE) == pytest.approx(numerator / 49_000)


def test_rewound_decay_is_a_saw_tooth_between_1_02_and_1_00():
    rates = [rewound_decay(t, **REFERENCE) for t in range(1_000, 50_000)]
    assert max(rates) == pytest.approx(50_000 / 49_000)
    assert min(rates) == pytest.approx(49_001 / 49_000)
    jumps = [t + 1_001 for t in range(len(rates) - 1) if rates[t + 1] > rates[t]]
    assert jumps == list(range(2_000, 50_000, 1_000))


def _rewound(t: int, steps: int, warmup: int, begin: int, end: int, every: int) -> Fraction:
    """The four cases as printed, in fractions."""
    pruning = end - begin
    if t < warmup:
        return Fraction(t, warmup)
    if t < begin:
        left = steps - pruning - t
    elif t < end:
        left = steps - pruning - t + (t - begin) // every * every
    else:
        left = steps - t
    return max(Fraction(0), Fraction(left, steps - pruning - warmup))


@pytest.mark.parametrize("ramp", [(20, 60, 7), (5, 60, 10), (0, 30, 1), (40, 99, 13)])
def test_rewound_decay_is_the_printed_equation(ramp):
    begin, end, every = ramp
    for t in range(100):
        found = rewound_decay(t, steps=100, warmup=10, peak=3.0, begin=begin, end=end, every=every)
        assert found == pytest.approx(3 * float(_rewound(t, 100, 10, begin, end, every))), t
