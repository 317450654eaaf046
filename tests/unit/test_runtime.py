"""ONNX Runtime: sessions, decisions, latency."""

import numpy as np
import onnx
import pytest
import torch

from pruneonce import runtime
from tests.conftest import token_batch


@pytest.fixture
def running(dense_onnx):
    return runtime.session(dense_onnx.path, threads=1)


def test_logits_are_the_models(running, dense_onnx):
    batch = token_batch(5, 6, 14)
    with torch.no_grad():
        wanted = dense_onnx.model(batch["input_ids"], batch["attention_mask"]).logits.numpy()
    np.testing.assert_allclose(runtime.logits(running, batch), wanted, atol=1e-5)


def test_count_right_counts_decisions(running):
    batches = [token_batch(seed, rows=5) for seed in range(3)]
    for batch in batches:
        batch["labels"] = torch.tensor(runtime.logits(running, batch).argmax(-1))
    batches[1]["labels"][2:4] = (batches[1]["labels"][2:4] + 1) % 3
    assert runtime.count_right(running, batches, name="test") == (13, 15)


def test_latency_takes_the_calls_after_the_warm_up(monkeypatch):
    """A clock that says how long each call took: 9 s while warming up, then 1, 2, ... 21 ms."""
    ticks = iter([t for ms in [9000.0, 9000.0, *range(1, 22)] for t in (0.0, ms / 1e3)])
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: next(ticks))

    class Session:
        calls = 0

        def get_inputs(self):
            return []

        def run(self, names, feeds):
            self.calls += 1

    session = Session()
    found = runtime.latency_ms(session, token_batch(), warmup_runs=2, runs=21)
    assert session.calls == 23
    assert found["median_ms"] == pytest.approx(11)
    assert found["p95_ms"] == pytest.approx(20)


def test_the_optimised_graph_is_another_one_and_the_file_stays(dense_onnx):
    before = dense_onnx.path.read_bytes()
    graph = onnx.load_from_string(runtime.optimised(dense_onnx.path)).graph
    assert len(graph.node) < len(onnx.load(dense_onnx.path).graph.node)
    assert dense_onnx.path.read_bytes() == before


def test_the_session_has_the_threads_it_was_given(dense_onnx):
    options = runtime.session(dense_onnx.path, threads=2).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)


def test_is_integer():
    assert runtime.is_integer("MatMulIntegerToFloat")
    assert not runtime.is_integer("MatMul")


def test_operator_times_are_those_of_the_graph(int8_onnx):
    found = runtime.operator_times(int8_onnx.path, token_batch(), threads=1, runs=3)
    assert {"MatMulIntegerToFloat", "QuantizeLinear", "Softmax"} <= set(found)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert 0 < sum(found.values()) < 1e3
    assert not list(int8_onnx.path.parent.glob("*.json"))


def test_a_session_takes_further_options(dense_onnx):
    options = runtime.session(dense_onnx.path, threads=1, entries={"session.x64quantprecision": "1"}).get_session_options()
    assert options.get_session_config_entry("session.x64quantprecision") == "1"
