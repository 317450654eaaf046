"""The grid of a sweep: which cells it has, how they are called, and what its page shows."""

import csv

import pytest

from flows import grid
from pipeline import sweep_page as page
from pruneonce.errors import ConfigError


def test_every_combination_is_a_cell_and_the_last_parameter_varies_first():
    found = grid.cells(["sparsify.sparsity=0.85,0.9", "common.seed=1,2"])
    assert [cell.overrides for cell in found] == [
        ["sparsify.sparsity=0.85", "common.seed=1"],
        ["sparsify.sparsity=0.85", "common.seed=2"],
        ["sparsify.sparsity=0.9", "common.seed=1"],
        ["sparsify.sparsity=0.9", "common.seed=2"],
    ]
    assert [cell.name for cell in found][1] == "sparsity=0.85_seed=2"
    assert len({cell.name for cell in found}) == 4


def test_keys_that_end_alike_are_named_whole():
    (cell,) = grid.cells(["finetune.epochs=1", "quantize.epochs=2"])
    assert cell.name == "finetune.epochs=1_quantize.epochs=2"


def test_a_comma_in_brackets_parts_no_values():
    found = grid.cells(['tasks.r8.prepare_task.labels=["no","yes"],null'])
    assert [cell.values["tasks.r8.prepare_task.labels"] for cell in found] == ['["no","yes"]', "null"]


@pytest.mark.parametrize("values", [["a/b", "a b"], ["x" * 200, "y" * 200], [r"encoder\.(0|1)", r"encoder.\(0,1)"]])
def test_names_are_fit_for_files_and_differ(values):
    found = grid.cells([f"sparsify.prunable={','.join(v.replace(',', ';') for v in values)}"])
    names = [cell.name for cell in found]
    assert len(set(names)) == len(values) == 2
    assert all(len(name) <= grid.LONGEST and not set(name) & set("/\\ *;") for name in names)


@pytest.mark.parametrize(
    "axes",
    [
        [],
        ["sparsify.sparsity"],
        ["=1,2"],
        ["common.seed=1,,2"],
        ["common.seed=1,1"],
        ["sparsify.sparsity=0.9,0.90"],
        ["sparsify.sparsity=1,1.0"],
        ["common.seed=1", "common.seed=2"],
    ],
)
def test_a_grid_that_says_nothing_is_one_clear_error(axes):
    with pytest.raises(ConfigError, match="expected"):
        grid.cells(axes)


ROW = {"task": "r8", "metric": "accuracy", "sparsity": 0.85, "packed_bytes": 2_000_000, "median_ms": 1.5, "more": 1}


def rows():
    """Two cells, each with two variants."""
    return [
        row
        for seed, score in (("1", 0.9), ("2", 0.95))
        for row in page.rows({"common.seed": seed}, [{**ROW, "variant": v, "score": score} for v in ("dense", "int8")])
    ]


def test_the_page_has_a_row_for_each_cell_task_and_variant(tmp_path):
    text = page.markdown("A sweep", rows(), ["common.seed"], ["x failed: why"])
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table[0] == "| common.seed | task | variant | score | sparsity | packed MB | ms |"
    assert table[2:] == [
        "| 1 | r8 | dense | 90.00% | 85.00% | 2.000 | 1.50 |",
        "| 1 | r8 | int8 | 90.00% | 85.00% | 2.000 | 1.50 |",
        "| 2 | r8 | dense | 95.00% | 85.00% | 2.000 | 1.50 |",
        "| 2 | r8 | int8 | 95.00% | 85.00% | 2.000 | 1.50 |",
    ]
    assert text.endswith("x failed: why\n")
    page.write_csv(tmp_path / "t.csv", rows(), ["common.seed"])
    with (tmp_path / "t.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [(row["common.seed"], row["variant"], float(row["score"])) for row in read][3] == ("2", "int8", 95.0)
    assert float(read[0]["packed_megabytes"]) == 2.0


def test_the_plot_has_a_panel_for_each_measure_and_a_line_for_each_variant(tmp_path):
    page.draw(tmp_path / "plot.svg", rows(), ["common.seed"])
    text = (tmp_path / "plot.svg").read_text()
    assert text.startswith("<svg")
    for title in ("score, %", "packed MB", "ms a call", "dense", "int8", "common.seed"):
        assert f">{title}<" in text


def test_the_plot_takes_words_in_place_of_numbers(tmp_path):
    found = page.rows({"sparsify.pattern": "1x4", "common.seed": "1"}, [{**ROW, "variant": "int8", "score": 0.5}])
    page.draw(tmp_path / "plot.svg", found, ["sparsify.pattern", "common.seed"])
    text = (tmp_path / "plot.svg").read_text()
    assert ">1x4<" in text
    assert ">seed 1<" in text
