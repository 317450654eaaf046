"""The table of the study, its verdicts and its page, against numbers worked by hand."""

import csv
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from study import comparison, results
from study.comparison import Verdict


def cell(one: float, two: float, *, size: float, rate: float = 1e-4, **more) -> dict:
    return {"test": {"1": one, "2": two}, "learning_rate": rate, "steps": 10, "encoder_bytes": size, **more}


@pytest.fixture
def table() -> list[comparison.Row]:
    int8 = {"test": {"1": 0.90, "2": 0.88}, "steps": 14, "encoder_bytes": 225.0}
    cells = {
        ("dense", 0.0): {"a": cell(0.98, 0.96, size=4000.0), "b": cell(0.9, 0.9, size=4000.0)},
        ("gradual", 0.9): {"a": cell(0.80, 0.84, size=525.0), "b": cell(0.7, 0.8, size=525.0)},
        ("once", 0.9): {
            "a": cell(0.94, 0.95, size=525.0, rate=8e-4, int8=int8),
            "b": cell(0.79, 0.75, size=525.0, int8=int8),
        },
    }
    return comparison.rows(cells, once_steps={"dense": 100, "gradual": 100, "once": 150})


def test_spread():
    assert comparison.spread([0.8, 0.84]) == pytest.approx(0.02)
    assert comparison.spread([0.1, 0.5, 0.2]) == pytest.approx(0.2)
    assert comparison.spread([0.3]) == 0


def test_a_row_a_variant_and_one_for_int8(table):
    assert [(row.variant, row.sparsity) for row in table] == [
        ("dense", 0.0),
        ("gradual", 0.9),
        ("once", 0.9),
        ("once-int8", 0.9),
    ]
    dense, _, once, int8 = table
    assert (dense.times_smaller, once.times_smaller) == (1.0, pytest.approx(4000 / 525))
    assert int8.times_smaller == pytest.approx(17.78, abs=0.01)  # the paper's 90 % in int8, with a bitmap as index
    assert once.scores == {"a": [0.94, 0.95], "b": [0.79, 0.75]}
    assert int8.scores == {"a": [0.90, 0.88], "b": [0.90, 0.88]}
    assert (once.steps, int8.steps) == ({"a": 10, "b": 10}, {"a": 14, "b": 14})
    assert once.learning_rates == int8.learning_rates == {"a": 8e-4, "b": 1e-4}
    assert [row.once_steps for row in table] == [100, 100, 150, 150]


def test_a_claim_is_judged_against_the_spread_of_its_seeds(table):
    a, b = comparison.verdicts(table, [["once", "gradual"]])
    assert (a.task, a.sparsity, a.says) == ("a", 0.9, "holds")
    assert a.difference == pytest.approx(0.945 - 0.82)
    assert a.noise == pytest.approx(0.005 + 0.02)
    assert b.says == "within the spread"  # 0.77 - 0.75 = 0.02 against 0.02 + 0.05
    (back, _) = comparison.verdicts(table, [["gradual", "once"]])
    assert back.says == "reversed"
    assert list(comparison.verdicts(table, [["dense", "once"]])) == [], "no sparsity that both have"


@pytest.mark.parametrize(
    ("differences", "whole"),
    [
        ([0.2, 0.05], "holds: holds in 1, within the spread in 1 of 2"),
        ([0.2, -0.2], "does not hold: holds in 1, reversed in 1 of 2"),
        ([0.05, -0.1], "cannot be told from the spread of the seeds: within the spread in 2 of 2"),
    ],
)
def test_the_last_line_follows_from_the_numbers(differences, whole):
    judged = [Verdict("once", "gradual", "a", 0.9, difference, 0.1) for difference in differences]
    lines = list(results.summary(judged))
    assert lines[-1] == f"- The ordering as a whole {whole} comparisons."
    assert len(lines) == 1 + 2 + 1
    assert f"{100 * differences[0]:+.2f}" in lines[1]


def test_the_page_has_the_shape_of_the_papers_table(table):
    judged = list(comparison.verdicts(table, [["once", "gradual"]]))
    page = results.markdown("A title", table, judged, "What it means.").splitlines()
    assert page[0] == "# A title"
    assert page[2].startswith("| variant | sparsity | a | b | learning rate |")
    assert page[4] == "| dense | 0% | 97.00% ± 1.00 | 90.00% ± 0.00 | 0.0001 / 0.0001 | 0.00 | 1.0 x | 10 / 10 | 100 |"
    assert page[6] == "| once | 90% | 94.50% ± 0.50 | 77.00% ± 2.00 | 0.0008 / 0.0001 | 0.00 | 7.6 x | 10 / 10 | 150 |"
    assert all(line.count("|") == page[2].count("|") for line in page[3:8])
    assert page[-1] == "What it means."
    numbers = json.loads(json.dumps(results.as_json(table, judged)))
    assert len(numbers["rows"]) == 4
    assert [claim["says"] for claim in numbers["claims"]] == ["holds", "within the spread"]


def test_a_task_may_have_the_name_of_a_column(table):
    tasks = {"a": "sparsity", "b": "smaller"}
    renamed = [
        replace(row, **{f: {tasks[k]: v for k, v in getattr(row, f).items()} for f in ("scores", "learning_rates", "steps")})
        for row in table
    ]
    page = results.markdown("A title", renamed, [], "").splitlines()
    assert page[2].startswith("| variant | sparsity | sparsity | smaller | learning rate |")
    assert page[4:8] == results.markdown("A title", table, [], "").splitlines()[4:8]


def test_points_and_drawing_are_the_same_bytes_twice(table, tmp_path):
    for name in ("one", "two"):
        results.write_points(tmp_path / f"{name}.csv", table)
        results.draw(tmp_path / f"{name}.svg", table)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    with (tmp_path / "one.csv").open() as file:
        points = list(csv.DictReader(file))
    assert len(points) == 4 * 2
    assert points[0] == {
        "task": "a",
        "variant": "dense",
        "sparsity": "0",
        "encoder_megabytes": "0.004",
        "score": "0.97000",
        "spread": "0.01000",
    }
    words = [element.text for element in ElementTree.parse(tmp_path / "one.svg").iter() if element.text]
    assert {"dense", "gradual", "once", "once-int8"} <= set(words)
