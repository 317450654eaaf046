"""ONNX Runtime: sessions, decisions, latency."""

import re

import numpy as np
import onnx
import pytest
import torch

from pruneonce.deployment import runtime
from pruneonce.errors import ModelError
from tests.conftest import token_batch


@pytest.fixture
def running(dense_onnx):
    return runtime.session(dense_onnx.path, threads=1)


def test_logits_are_the_models(running, dense_onnx):
    batch = token_batch(5, 6, 14)
    with torch.no_grad():
        wanted = dense_onnx.model(batch["input_ids"], batch["attention_mask"]).logits.numpy()
    np.testing.assert_allclose(runtime.logits(running, batch), wanted, atol=1e-5)


def test_answers_are_the_logits_of_every_batch(running):
    batches = [token_batch(seed, rows=5) for seed in range(3)]
    found = list(runtime.answers(running, batches, name="test"))
    assert [batch is given for (batch, _), given in zip(found, batches, strict=True)] == [True] * 3
    np.testing.assert_array_equal(found[1][1], runtime.logits(running, batches[1]))


BATCH = np.full((2, 9), 7)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"attention_mask": BATCH[:, :8]}, r"'input_ids': (2, 9), 'attention_mask': (2, 8)}: .* 8 by 9"),
        ({"input_ids": BATCH + 1000}, "idx=1007 must be within the inclusive range [-162,161]"),
        ({"input_ids": BATCH.astype(np.int32)}, "expected: (tensor(int64))"),
        ({"input_ids": BATCH[0]}, "Got: 1 Expected: 2"),
        ({"input_ids": BATCH[:, :0], "attention_mask": BATCH[:, :0]}, "'attention_mask': (2, 0)}: "),
        ({"tokens": BATCH}, "Invalid input name: tokens"),
        ({"input_ids": np.full((2, 65), 7)}, "'input_ids': (2, 65), 'attention_mask': (2, 9)"),
    ],
)
def test_inputs_that_the_model_cannot_read_are_one_error(running, given, says, capfd):
    """The number of positions is named where it is what is wrong: tests/integration/test_longest.py."""
    feeds = {"input_ids": BATCH, "attention_mask": np.ones_like(BATCH), **given}
    says = ".*".join(map(re.escape, says.split(".*")))
    with pytest.raises(ModelError, match=f"expected inputs that the model can read, found .*{says}"):
        running.run(None, feeds)
    assert capfd.readouterr() == ("", "")
    assert running.run(None, {"input_ids": BATCH, "attention_mask": np.ones_like(BATCH)})[0].shape == (2, 3)


def test_a_text_that_is_too_long_is_told_the_positions(running, capfd):
    for rows, tokens in ((1, 65), (3, 70), (2, 5000)):
        ids = np.full((rows, tokens), 7)
        with pytest.raises(
            ModelError, match=f"at most 64 tokens, for which the model has positions, found {tokens}. Cut them"
        ):
            running.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert capfd.readouterr() == ("", "")


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
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: next(ticks))
    calls: list[str] = []
    monkeypatch.setattr(runtime.time, "sleep", lambda seconds: calls.append("pause"))
    sessions = {name: Session(name, calls) for name in ("one", "two")}
    found = runtime.latencies_ms(sessions, token_batch(), warmup_runs=2, runs=21)
    expected = [["one"] * 2, ["two"] * 2]
    expected += [["pause", *[name] * count] for count in (10, 10, 1) for name in ("one", "two")]
    assert calls == [call for turn in expected for call in turn]
    assert [found[name]["median_ms"] for name in found] == pytest.approx([11, 22])
    assert [found[name]["p95_ms"] for name in found] == pytest.approx([20, 40])


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
