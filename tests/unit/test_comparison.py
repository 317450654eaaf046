"""The table of the study, its verdicts and its page, against numbers worked by hand."""

import csv
import json
import math
import random
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

from pipeline.params.study import Claims
from study import comparison, results
from study.comparison import Verdict


def scores(one: float, two: float) -> dict:
    """Of a cell, by seed. Every draw of the test rows moves all models by the same."""
    moves = (-0.01, 0.0, 0.01)
    replicates = {"1": [one + move for move in moves], "2": [two + move for move in moves]}
    return {"test": {"1": one, "2": two}, "replicates": replicates}


def cell(one: float, two: float, *, size: float, rate: float = 1e-4, **more) -> dict:
    measured = {**scores(one, two), "steps": 10, "encoder_bytes": size}
    return {**measured, "learning_rate": rate, "bracketed": rate > 1e-4, **more}


@pytest.fixture
def table() -> list[comparison.Row]:
    int8 = {**scores(0.90, 0.88), "steps": 14, "encoder_bytes": 225.0}
    cells = {
        ("dense", "none", 0.0): {"a": cell(0.98, 0.96, size=4000.0), "b": cell(0.9, 0.9, size=4000.0)},
        ("gradual", "magnitude", 0.9): {"a": cell(0.80, 0.84, size=525.0), "b": cell(0.7, 0.8, size=525.0)},
        ("once", "magnitude", 0.9): {
            "a": cell(0.94, 0.95, size=525.0, rate=8e-4, int8=int8, longer={**scores(0.96, 0.96), "steps": 20}),
            "b": cell(0.79, 0.75, size=525.0, int8=int8),
        },
        ("once", "second_order", 0.95): {"a": cell(0.93, 0.93, size=325.0), "b": cell(0.7, 0.7, size=325.0)},
        ("once", "second_order", 0.9): {"a": cell(0.96, 0.96, size=525.0), "b": cell(0.7, 0.7, size=525.0)},
    }
    return comparison.rows(cells, once_steps={"dense": 100, "gradual": 100, "once": 150})


def test_spread():
    assert comparison.spread([0.8, 0.84]) == pytest.approx(0.02)
    assert comparison.spread([0.1, 0.5, 0.2]) == pytest.approx(0.2)
    assert comparison.spread([0.3]) == 0


def test_a_row_a_variant_and_one_for_int8(table):
    assert [row.key for row in table] == [
        "dense-none-0",
        "gradual-magnitude-0.9",
        "once-magnitude-0.9",
        "once-int8-magnitude-0.9",
        "once-longer-magnitude-0.9",
        "once-second_order-0.95",
        "once-second_order-0.9",
    ]
    dense, _, once, int8, longer, *_ = table
    assert (longer.scores, longer.steps, longer.learning_rates) == ({"a": [0.96, 0.96]}, {"a": 20}, {"a": 8e-4})
    assert (dense.times_smaller, once.times_smaller) == (1.0, pytest.approx(4000 / 525))
    assert int8.times_smaller == pytest.approx(17.78, abs=0.01)  # the paper's 90 % in int8, with a bitmap as index
    assert once.scores == {"a": [0.94, 0.95], "b": [0.79, 0.75]}
    assert int8.scores == {"a": [0.90, 0.88], "b": [0.90, 0.88]}
    assert (once.steps, int8.steps) == ({"a": 10, "b": 10}, {"a": 14, "b": 14})
    assert once.learning_rates == int8.learning_rates == {"a": 8e-4, "b": 1e-4}
    assert [row.once_steps for row in table] == [100, 100, 150, 150, 150, 150, 150]


def claims(**given) -> Claims:
    return Claims(**{"when": [], "how": [], "smaller": [], **given})


def test_a_claim_is_judged_against_the_spread_of_its_seeds(table):
    a, b = comparison.verdicts(table, claims(when=[["once", "gradual"]]))
    assert (a.task, a.where, a.says) == ("a", "magnitude, 90%", "holds")
    assert a.difference == pytest.approx(0.945 - 0.82)
    assert a.noise == pytest.approx(0.005 + 0.02)
    assert b.says == "within the spread"  # 0.77 - 0.75 = 0.02 against 0.02 + 0.05
    (back, _) = comparison.verdicts(table, claims(when=[["gradual", "once"]]))
    assert back.says == "reversed"
    assert list(comparison.verdicts(table, claims(when=[["dense", "once"]]))) == [], "no sparsity that both have"


def test_a_difference_must_be_beyond_the_test_rows_too(table):
    """Seeds that are apart say nothing of other test rows: every draw of these must be on one side as well."""
    once, gradual = table[2], table[1]
    draw = np.random.default_rng(1)
    moved = draw.normal(0.0, 0.01, (2, 1000))

    def rows(apart: float) -> list[comparison.Row]:
        low, high = ([score + moved[i] for score in scores] for i, scores in ((0, [0.8] * 2), (1, [0.8 + apart] * 2)))
        return [
            replace(gradual, scores={"a": [0.8, 0.8]}, replicates={"a": low}),
            replace(once, scores={"a": [0.8 + apart] * 2}, replicates={"a": high}),
        ]

    for apart, says in ((0.04, "holds"), (0.02, "within the spread"), (-0.02, "within the spread"), (-0.04, "reversed")):
        (found,) = comparison.verdicts(rows(apart), claims(when=[["once", "gradual"]]))
        assert found.says == says
        reach = 1.96 * 0.01 * math.sqrt(2)
        assert found.low == pytest.approx(apart - reach, abs=0.003)
        assert found.high == pytest.approx(apart + reach, abs=0.003)


def test_of_two_models_that_err_in_the_same_rows_a_small_difference_is_known(table):
    """The draws of both are of the same rows: what moves both does not count."""
    a, _ = comparison.verdicts(table, claims(when=[["once", "gradual"]]))
    assert (a.low, a.high) == (pytest.approx(0.125), pytest.approx(0.125))


def test_a_row_without_replicates_is_judged_by_its_seeds(table):
    once, gradual = (replace(table[i], replicates={}) for i in (2, 1))
    a, _ = comparison.verdicts([once, gradual], claims(when=[["once", "gradual"]]))
    assert (a.low, a.high, a.says) == (None, None, "holds")
    (line, *_) = (line for line in results.claims([a]) if line.startswith("  "))
    assert "test rows" not in line


@pytest.mark.parametrize("total", [7, 643, 2189, 7528])
def test_seeds_that_touch_are_within_the_spread(total):
    """Scores are counts / rows, so the best seed of one side often equals the worst of the other."""
    draw = random.Random(total)
    for _ in range(500):
        low, middle, high = sorted(draw.randrange(total + 1) / total for _ in range(3))
        one, other = [middle, high], [low, middle]
        noise = comparison.spread(one) + comparison.spread(other)
        assert Verdict("a", "b", "", "t", fmean(one) - fmean(other), noise).says == "within the spread"
        apart = Verdict("a", "b", "", "t", fmean(one) + 1 / total - fmean(other), noise)
        assert apart.says == "holds"


def test_sparsities_that_are_near_each_other_are_not_taken_for_one(table):
    """97.5 % and 98 % have cells of their own, and 99.5 % is not 100 %."""
    once, gradual = table[2], table[1]
    good, bad = {"a": [0.9, 0.9]}, {"a": [0.8, 0.8]}
    rows = [replace(once, sparsity=0.975, scores=good), replace(gradual, sparsity=0.975, scores=bad)]
    rows += [replace(once, sparsity=0.98, scores=bad), replace(gradual, sparsity=0.98, scores=good)]
    found = list(comparison.verdicts(rows, claims(when=[["once", "gradual"]])))
    assert [(v.where, v.says) for v in found] == [("magnitude, 97.5%", "holds"), ("magnitude, 98%", "reversed")]
    int8 = replace(table[3], sparsity=0.975, scores=bad, encoder_bytes=100.0)
    (smaller,) = comparison.verdicts([*rows, int8], claims(smaller=[[0.975, 0.98]]))
    assert (smaller.better, smaller.worse, smaller.says) == ("int8 at 97.5%", "float at 98%", "within the spread")
    assert [comparison.percent(x) for x in (0.0, 0.57, 0.875, 0.995)] == ["0%", "57%", "87.5%", "99.5%"]


def test_where_no_rows_can_be_compared_the_page_says_so():
    assert list(results.summary([])) == ["- No two rows could be compared."]


def test_when_and_how_are_apart(table):
    """Two variants are compared by one criterion, two criteria on one variant: at one sparsity, in float and in int8."""
    (a, b) = comparison.verdicts(table, claims(how=[["second_order", "magnitude"]]))
    assert (a.better, a.worse, a.where, a.task) == ("second_order", "magnitude", "once, 90%", "a")
    assert a.difference == pytest.approx(0.96 - 0.945)
    assert (b.task, b.says) == ("b", "reversed")
    assert list(comparison.verdicts(table, claims(how=[["least_squares", "magnitude"]]))) == []


def test_models_of_more_steps_are_compared_with_each_other_alone(table):
    gradual = next(row for row in table if row.variant == "gradual")
    more = [*table, replace(gradual, longer=20, scores={"a": [0.97, 0.97]})]
    found = list(comparison.verdicts(more, claims(when=[["once", "gradual"]])))
    assert [(v.where, v.task, v.says) for v in found][-1] == ("magnitude, 90%, 20 steps", "a", "reversed")
    assert len(found) == 3


def test_int8_at_a_lower_sparsity_must_be_smaller_and_no_less_accurate(table):
    lower = replace(table[3], sparsity=0.8, encoder_bytes=400.0)
    a, b = comparison.verdicts([*table, lower], claims(smaller=[[0.8, 0.9]]))
    assert (a.better, a.worse, a.where) == ("int8 at 80%", "float at 90%", "once, magnitude")
    assert a.smaller == pytest.approx(525 / 400)
    assert (a.says, b.says) == ("reversed", "holds")  # 0.89 against 0.945, and against 0.77
    lines = list(results.claims([a, b]))
    assert ", 1.31 x smaller: holds." in lines[-1]
    larger = replace(lower, encoder_bytes=600.0, scores={"a": [1.0, 1.0]})
    (found,) = comparison.verdicts([*table, larger], claims(smaller=[[0.8, 0.9]]))
    assert found.says == "reversed", "it is more accurate, and not smaller"


def test_the_page_names_the_cells_whose_best_rate_is_at_an_edge(table):
    assert results.at_edge(table[2:5]) == "once-magnitude-0.9 on b", "once, and not again for its int8 and its longer row"
    assert results.at_edge(table[3:5]) == "none"


@pytest.mark.parametrize(
    ("differences", "whole"),
    [
        ([0.2, 0.05], "holds where it can be told from the spread: holds in 1, within the spread in 1 of 2"),
        ([0.2, -0.2], "does not hold: holds in 1, reversed in 1 of 2"),
        ([0.05, -0.1], "cannot be told from the spread: within the spread in 2 of 2"),
    ],
)
def test_the_last_line_follows_from_the_numbers(differences, whole):
    judged = [Verdict("once", "gradual", "magnitude, 90%", "a", difference, 0.1) for difference in differences]
    lines = list(results.summary(judged))
    assert lines[-1] == f"- The ordering as a whole {whole} comparisons."
    assert len(lines) == 1 + 2 + 1
    assert f"{100 * differences[0]:+.2f}" in lines[1]


def test_the_page_has_the_shape_of_the_papers_table(table):
    judged = list(comparison.verdicts(table, claims(when=[["once", "gradual"]])))
    page = results.markdown("A title", table, judged, "What it means.").splitlines()
    assert page[0] == "# A title"
    assert page[2].startswith("| variant | criterion | sparsity | a | b | learning rate |")
    assert (
        page[4] == "| dense | none | 0% | 97.00% ± 1.00 | 90.00% ± 0.00 | 0.0001 / 0.0001 | 0.00 | 1.0 x | 10 / 10 | 100 |"
    )
    assert (
        page[6]
        == "| once | magnitude | 90% | 94.50% ± 0.50 | 77.00% ± 2.00 | 0.0008 / 0.0001 | 0.00 | 7.6 x | 10 / 10 | 150 |"
    )
    assert page[8].startswith("| once-longer | magnitude | 90% | 96.00% ± 0.00 |  | 0.0008 |")
    assert all(line.count("|") == page[2].count("|") for line in page[3:11])
    assert page[-1] == "What it means."
    numbers = json.loads(json.dumps(results.as_json(table, judged)))
    assert len(numbers["rows"]) == 7
    assert [claim["says"] for claim in numbers["claims"]] == ["holds", "within the spread"]


def test_a_task_may_have_the_name_of_a_column(table):
    tasks = {"a": "sparsity", "b": "smaller"}
    by_task = ("scores", "learning_rates", "bracketed", "steps")
    renamed = [replace(row, **{f: {tasks[k]: v for k, v in getattr(row, f).items()} for f in by_task}) for row in table]
    page = results.markdown("A title", renamed, [], "").splitlines()
    assert page[2].startswith("| variant | criterion | sparsity | sparsity | smaller | learning rate |")
    assert page[4:8] == results.markdown("A title", table, [], "").splitlines()[4:8]


def test_points_and_drawing_are_the_same_bytes_twice(table, tmp_path):
    for name in ("one", "two"):
        results.write_points(tmp_path / f"{name}.csv", table)
        results.draw(tmp_path / f"{name}.svg", table)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    with (tmp_path / "one.csv").open() as file:
        points = list(csv.DictReader(file))
    assert len(points) == 6 * 2 + 1
    assert points[0] == {
        "task": "a",
        "variant": "dense",
        "criterion": "none",
        "sparsity": "0",
        "encoder_megabytes": "0.004",
        "score": "0.97000",
        "spread": "0.01000",
    }
    words = [element.text for element in ElementTree.parse(tmp_path / "one.svg").iter() if element.text]
    names = {"dense", "gradual, magnitude", "once, magnitude", "once-int8, magnitude", "once, second_order"}
    assert names <= set(words)
    assert not any("longer" in word for word in words)
