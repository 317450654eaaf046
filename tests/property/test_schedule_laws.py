"""Laws of the schedules, for any ramp."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneonce.sparsity.gradual import cubic_sparsity
from pruneonce.training.schedules import linear_decay, rewound_decay


@st.composite
def ramps(draw):
    begin = draw(st.integers(0, 500))
    initial = draw(st.floats(0, 1))
    return {
        "begin": begin,
        "end": begin + draw(st.integers(0, 500)),
        "initial": initial,
        "target": draw(st.floats(initial, 1)),
    }


@given(ramps(), st.integers(0, 2000))
def test_sparsity_is_0_before_and_the_target_after(ramp, ahead):
    if ramp["begin"]:
        assert cubic_sparsity(max(0, ramp["begin"] - 1 - ahead), **ramp) == 0
    assert cubic_sparsity(ramp["end"] + ahead, **ramp) == ramp["target"]
    if ramp["begin"] < ramp["end"]:
        assert cubic_sparsity(ramp["begin"], **ramp) == pytest.approx(ramp["initial"])


@given(ramps())
def test_sparsity_rises_and_stays_in_its_bounds(ramp):
    values = [cubic_sparsity(t, **ramp) for t in range(ramp["end"] + 3)]
    assert all(a <= b + 1e-12 for a, b in pairwise(values))
    assert all(0 <= v <= ramp["target"] + 1e-12 for v in values)


@given(st.integers(1, 300), st.integers(0, 299), st.floats(1e-6, 10))
def test_linear_decay_rises_to_the_peak_then_falls_and_is_never_0(steps, warmup, peak):
    warmup = min(warmup, steps - 1)
    rates = [linear_decay(t, steps=steps, warmup=warmup, peak=peak) for t in range(steps)]
    assert all(0 < r <= peak * (1 + 1e-12) for r in rates)
    assert rates[warmup] == pytest.approx(peak)
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


@st.composite
def rewound(draw):
    steps = draw(st.integers(20, 300))
    begin = draw(st.integers(0, steps // 2))
    end = draw(st.integers(begin, steps - 1))
    warmup = draw(st.integers(0, max(0, steps - (end - begin) - 1)))
    return {"steps": steps, "warmup": warmup, "begin": begin, "end": end, "every": draw(st.integers(1, 50))}


@given(rewound())
def test_the_rate_is_rewound_at_every_pruning_step(s):
    """At each the rate is that of `begin`; between two it falls by one step of the decay at a time."""

    def rate(t):
        return rewound_decay(t, peak=1.0, **s)

    slope = 1 / (s["steps"] - (s["end"] - s["begin"]) - s["warmup"])
    start = max(s["begin"], s["warmup"])
    for t in range(start, s["end"]):
        position = (t - s["begin"]) % s["every"]
        height = max(0.0, (s["steps"] - (s["end"] - s["begin"]) - s["begin"] - position) * slope)
        assert rate(t) == pytest.approx(height)


@given(rewound())
def test_the_rewound_rate_ends_on_its_course_and_is_never_negative(s):
    rates = [rewound_decay(t, peak=1.0, **s) for t in range(s["steps"] + 5)]
    assert min(rates) >= 0
    assert rates[s["steps"] :] == [0] * 5
    after = rates[max(s["end"], s["warmup"]) :]
    assert after == sorted(after, reverse=True)
