"""Each gate by name: where it holds, where it fails, and what it says."""

import copy
import math

import pytest

from pipeline import gates, paired
from pruneonce.errors import DataError
from tests.answers import GATES, ROWS, measured, right, write


def broken(found, gates_of=GATES) -> list[str]:
    return [verdict.name for verdict in gates.failed(gates.of(found, gates_of))]


def changed(field: str, path: str, value: object):
    """A good task in which one number is another one."""
    found = copy.deepcopy(measured())
    *above, key = path.split(".")
    level = getattr(found, field)
    for name in above:
        level = level[name]
    level[key] = value
    return found


def test_a_good_model_holds_every_gate():
    found = gates.of(measured(), GATES)
    assert [(v.name, v.holds) for v in found] == [
        ("least_score", True),
        ("most_score_drop", True),
        ("least_sparsity", True),
        ("least_same_decisions", True),
        ("most_packed_bytes", True),
        ("most_latency_ratio", True),
    ]
    assert gates.summary("topic", found) == "gates: topic: all 6 hold"
    assert {v.name for v in found} | {"most_drop_to_champion"} == set(GATES.model_dump())


@pytest.mark.parametrize(
    ("found", "name", "words"),
    [
        (
            measured(int8=right(405), dense=right(405)),
            "least_score",
            "score: expected at least 90.00%, found 59.50%",
        ),
        (
            measured(int8=right(95)),
            "most_score_drop",
            "score against dense: expected a drop of less than 3.00 points, with its interval, found 97.00% -> 90.50%, "
            "-6.50 points (95 % interval -8.04 to -4.94)",
        ),
        (
            changed("scores", "int8.sparsity", 0.83999),
            "least_sparsity",
            "sparsity: expected at least 84.00%, found 84.00%",
        ),
        (
            changed("export", "int8.parity.same_decision", 121 / 128),
            "least_same_decisions",
            "parity: expected at least 95.00% of decisions as PyTorch's, found 94.53% of 128",
        ),
        (
            changed("scores", "int8.packed_bytes", 15_200_000),
            "most_packed_bytes",
            "packed size: expected at most 15 MB, found 15.2 MB",
        ),
        (
            changed("scores", "int8.packed_bytes", 15_000_001),
            "most_packed_bytes",
            "packed size: expected at most 15000000 bytes, found 15000001 bytes",
        ),
        (
            changed("latencies", "int8.median_ms", 9.9),
            "most_latency_ratio",
            "latency: expected at most 0.60 of dense, found 0.75 (ONNX Runtime's kernels, 9.9 ms of 13.2)",
        ),
    ],
)
def test_each_gate_fails_by_name(found, name, words):
    assert broken(found) == [name]
    summary = gates.summary("topic", gates.of(found, GATES))
    assert summary == f"gates: topic FAILED: {words}"


@pytest.mark.parametrize(("ones", "holds"), [(500, True), (580, True), (590, False), (1000, False)])
def test_without_a_number_a_score_is_better_than_the_most_frequent_class(ones, holds):
    """59.5 % of mixed up labels are no better than always the same answer."""
    found = measured(int8=right(405), dense=right(405))
    found.answers["labels"][:] = [1] * ones + [0] * (ROWS - ones)
    verdict = gates.of(found, GATES.changed({"least_score": None}))[0]
    assert (verdict.name, verdict.holds) == ("least_score", holds)
    assert verdict.line() == (
        f"score: expected more than {ones / ROWS:.2%}, the share of the most frequent class, with its interval, "
        "found 59.50% (95 % interval from 58.50%)"
    )


@pytest.mark.parametrize(("low", "holds"), [(0.01, True), (0.0, False), (math.nan, False)])
def test_without_a_number_another_metric_is_above_0(low, holds):
    found = changed("scores", "int8.score_low", low)
    found.answers["metric"] = "mcc"
    verdict = gates.of(found, GATES.changed({"least_score": None}))[0]
    assert verdict.holds is holds
    assert "expected more than 0%, with its interval" in verdict.line()


def test_gates_hold_at_their_own_number():
    for field, path, value in (
        ("scores", "int8.sparsity", GATES.least_sparsity),
        ("export", "int8.parity.same_decision", GATES.least_same_decisions),
        ("scores", "int8.packed_bytes", GATES.most_packed_bytes),
        ("latencies", "int8.median_ms", 13.2 * GATES.most_latency_ratio),
    ):
        assert broken(changed(field, path, value)) == []


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("scores", "int8.score"),
        ("scores", "int8.sparsity"),
        ("export", "int8.parity.same_decision"),
        ("scores", "int8.packed_bytes"),
        ("latencies", "int8.median_ms"),
    ],
)
def test_what_is_no_number_holds_no_gate(field, path):
    assert len(broken(changed(field, path, math.nan))) == 1


def test_a_score_that_is_no_number_holds_no_gate():
    found = measured()
    found.answers["metric"] = "pearson"
    found.answers["variants"]["int8"]["replicates"] = [math.nan, math.nan]
    assert broken(found) == ["most_score_drop"]


def test_a_drop_counts_with_its_interval():
    """The drop is 2 points twice. Where the two models differ in more rows, less is known about it."""
    alike, apart = measured(int8=right(50)), measured(int8=right(50, first=500))
    assert [gates.of(found, GATES)[1].found_words[:16] for found in (alike, apart)] == ["97.00% -> 95.00%"] * 2
    assert broken(alike) == []
    assert broken(apart) == ["most_score_drop"]


def test_the_faster_variant_counts():
    found = changed("latencies", "int8.median_ms", 9.9)
    found.latencies["int8_sparse"] = {"median_ms": 3.8}
    assert broken(found) == []
    assert "sparse kernels, 3.8 ms of 13.2" in gates.of(found, GATES)[5].line()


@pytest.mark.parametrize(
    ("wrong", "most", "holds"), [(33, 0.0, True), (80, 0.0, False), (80, 0.04, False), (80, 0.05, True)]
)
def test_a_champion_that_is_better_by_more_than_noise_stays(wrong, most, holds):
    found = paired.of_proportions(right(wrong), right(32))
    verdict = gates.to_champion(found, GATES.changed({"most_drop_to_champion": most}))
    assert verdict.holds is holds
    assert ("inside the noise" in verdict.line()) == (wrong == 33)
    assert verdict.found == pytest.approx((wrong - 32) / ROWS)


def test_a_candidate_that_is_better_holds():
    assert gates.to_champion(paired.of_proportions(right(10), right(60)), GATES).holds


def test_the_table_names_what_failed():
    lines = gates.table(gates.of(measured(int8=right(400)), GATES))
    assert lines[0] == "| gate | expected | found | verdict |"
    assert [line.endswith("| **FAILED** |") for line in lines[2:]] == [True, True, False, False, False, False]


def test_what_was_measured_is_read_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = write(measured())
    assert gates.read("topic") == measured()
    paths["answers"].unlink()
    with pytest.raises(DataError, match=r"expected data/answers/topic\.json.*Get it with: dvc repro evaluate@topic"):
        gates.read("topic")
    paths["answers"].write_text("{")
    with pytest.raises(DataError, match=r"expected data/answers/topic\.json.*found none that can be read"):
        gates.read("topic")


def test_a_file_without_what_a_gate_reads_is_an_error():
    found = measured()
    del found.answers["variants"]["int8"]
    with pytest.raises(DataError, match=r"data/answers/topic\.json.*without 'int8'"):
        gates.of(found, GATES)
