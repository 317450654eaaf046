"""Answers, latency and the time by operator, as ONNX Runtime gives them."""

from functools import partial

import numpy as np
import pytest

from pruneonce.deployment import measurements, runtime
from tests.conftest import token_batch


@pytest.fixture
def running(dense_onnx):
    return runtime.session(dense_onnx.path, threads=1)


def test_answers_are_the_logits_of_every_batch(running):
    batches = [token_batch(seed, rows=5) for seed in range(3)]
    found = list(measurements.answers(running, batches, name="test"))
    assert [batch is given for (batch, _), given in zip(found, batches, strict=True)] == [True] * 3
    np.testing.assert_array_equal(found[1][1], runtime.logits(running, batches[1]))


class Session:
    """Answers with nothing, and says in `calls` whose turn it was."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def get_inputs(self):
        return []

    def run(self, names, feeds):
        self.calls.append(self.name)


def test_latency_takes_the_calls_after_the_warm_up_in_turns(monkeypatch):
    """A clock that says how long each call took: 9 s while warming up, then 1, 2, ... 21 ms for one, twice that for two."""
    turns = [[*range(1, 11)], [*range(11, 21)], [21]]
    measured = [factor * ms for turn in turns for factor in (1, 2) for ms in turn]
    ticks = iter([t for ms in [9000.0] * 4 + measured for t in (0.0, ms / 1e3)])
    monkeypatch.setattr(measurements.time, "perf_counter", lambda: next(ticks))
    calls: list[str] = []
    monkeypatch.setattr(measurements.time, "sleep", lambda seconds: calls.append("pause"))
    sessions = {name: Session(name, calls) for name in ("one", "two")}
    found = measurements.latencies_ms(sessions, token_batch(), warmup_runs=2, runs=21)
    expected = [["one"] * 2, ["two"] * 2]
    expected += [["pause", *[name] * count] for count in (10, 10, 1) for name in ("one", "two")]
    assert calls == [call for turn in expected for call in turn]
    assert [found[name]["median_ms"] for name in found] == pytest.approx([11, 22])
    assert [found[name]["p95_ms"] for name in found] == pytest.approx([20, 40])


def test_operator_times_are_those_of_the_graph(int8_onnx):
    load = partial(runtime.session, int8_onnx.path, threads=1)
    found = measurements.operator_times(load, token_batch(), runs=3)
    assert {"MatMulIntegerToFloat", "QuantizeLinear", "Softmax"} <= set(found)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert 0 < sum(found.values()) < 1e3
    assert not list(int8_onnx.path.parent.glob("*.json"))
