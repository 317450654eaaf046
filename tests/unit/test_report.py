"""The closing table, worked by hand."""

import csv

import pytest

from pipeline import report


def score(value, sparsity, file_bytes, packed):
    return {
        "metric": "f1",
        "score": value,
        "score_low": value - 0.01,
        "score_high": value + 0.01,
        "metrics": {"f1": value, "exact_match": value - 0.1},
        "more_tests": {},
        "rows": 200,
        "sparsity": sparsity,
        "file_bytes": file_bytes,
        "packed_bytes": packed,
    }


@pytest.fixture
def table():
    scores = {
        "dense": score(0.95, 0.0, 90_000_000, 80_000_000),
        "sparse": score(0.94, 0.85, 90_000_000, 20_000_000),
        "int8": score(0.955, 0.85, 25_000_000, 10_000_000),
        "int8_sparse": score(0.955, 0.85, 25_000_000, 10_000_000),
    }
    latencies = {
        name: {"median_ms": ms, "p95_ms": ms + 1, "resident_bytes": 1_250_000 * ms, "tokens": 128, "threads": 2}
        for name, ms in (("int8_sparse", 2.0), ("int8", 4.0), ("dense", 10.0), ("sparse", 10.0))
    }
    return report.task_rows("r8", scores, latencies)


def test_rows_compare_to_the_dense_variant(table):
    assert [r["variant"] for r in table] == ["dense", "sparse", "int8", "int8_sparse"]
    assert [r["score_change"] for r in table] == pytest.approx([0, -0.01, 0.005, 0.005])
    assert [r["times_smaller"] for r in table] == pytest.approx([1.125, 4.5, 9, 9])
    assert [r["times_faster"] for r in table] == pytest.approx([1, 1, 2.5, 5])
    assert {r["task"] for r in table} == {"r8"}


def test_cells_stand_under_their_headers(table):
    assert report.cells(table[3]) == {
        "task": "r8",
        "variant": "int8, sparse kernels",
        "metric": "f1",
        "score": "95.50%",
        "95 % interval": "94.5% - 96.5%",
        "sparsity": "85.00%",
        "MB": "25.0",
        "packed MB": "10.0",
        "smaller": "9.0 x",
        "ms": "2.0",
        "p95 ms": "3.0",
        "MB in memory": "2",
        "speed": "5.00 x",
    }


def test_scores_on_further_tests_stand_behind_the_first(table):
    mismatched = {**table[0], "more_tests": {"mismatched": 0.9}}
    assert report.cells(mismatched)["score"] == "95.00% / 90.00%"


def test_markdown_is_one_table_with_a_legend_and_every_metric(table):
    lines = report.markdown("Title", table).splitlines()
    assert lines[0] == "# Title"
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 12
    assert {row.count("|") for row in rows[:6]} == {len(report.cells(table[0])) + 1}
    assert rows[8:] == [
        "| r8 | dense | f1 95.00%, exact_match 85.00% |",
        "| r8 | sparse | f1 94.00%, exact_match 84.00% |",
        "| r8 | int8 | f1 95.50%, exact_match 85.50% |",
        "| r8 | int8, sparse kernels | f1 95.50%, exact_match 85.50% |",
    ]
    assert report.every_metric([{**row, "metrics": {"f1": 0.9}} for row in table]) == []
    assert any("128 tokens, 2 threads" in line for line in lines)


def test_a_variant_that_was_not_evaluated_has_no_row_and_no_legend(table):
    """As where the library of the sparse kernels is missing."""
    assert "- int8, sparse kernels: the int8 file, " in report.markdown("Title", table)
    fewer = report.markdown("Title", table[:3])
    assert "sparse kernels" not in fewer
    assert fewer.count("\n| r8 |") == 6


def test_the_page_says_which_times_may_be_compared(table):
    """Variants are measured in turns, tasks in stages of their own, hours apart at times: the same under every table."""
    tables = [*table, *({**row, "task": "tweets"} for row in table)]
    page = " ".join(report.markdown("Title", tables).split())
    assert (
        "The variants of a task are measured in turns, but the tasks at different times. So compare milliseconds within a "
        "task only."
    ) in page


def test_the_sparsity_stands_in_the_table_whatever_the_title_says(table):
    rows = [{**row, "sparsity": 0.0 if row["variant"] == "dense" else 0.70123} for row in table]
    lines = report.markdown("MiniLM-L6, pruned once to 85 %", rows).splitlines()
    shown = [line.split("|")[1:-1] for line in lines if line.count("|") == len(report.cells(table[0])) + 1]
    column = list(report.cells(table[0])).index("sparsity")
    found = [row[column].strip() for row in shown[2:]]  # below the header and its rule
    assert found == ["0.00%", "70.12%", "70.12%", "70.12%"]


def test_sizes_are_a_csv_file(table, tmp_path):
    report.write_sizes(tmp_path / "sizes.csv", table)
    with (tmp_path / "sizes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["variant"], float(r["packed_megabytes"]), float(r["score"])) for r in rows] == [
        ("dense", 80.0, 0.95),
        ("sparse", 20.0, 0.94),
        ("int8", 10.0, 0.955),
        ("int8_sparse", 10.0, 0.955),
    ]
