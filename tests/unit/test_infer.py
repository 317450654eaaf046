"""The benchmark of run time: turns in rounds, ratios to the plain export, the content of each file."""

import numpy as np
import pytest
from transformers import BertConfig

from benchmarks import infer, models
from pruneonce.deployment import inspect

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # the plain export's own, about its axes
TINY = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=2)


def test_variants_take_turns():
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    times = infer.take_turns(calls, budget=0, least=3, most=9)
    assert "".join(order) == "ab" + ("a" * 10 + "b" * 10) * 3  # warm up, then turns
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3}


def test_there_are_at_most_so_many_rounds():
    assert len(infer.take_turns({"a": lambda: None}, budget=60, least=1, most=4)["a"]) == 4


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("infer")
    made = {infer.PLAIN: infer.plain, "sparse fp32": infer.sparse, "int8": infer.int8}
    for make in made.values():
        make(TINY, folder / f"{make.__name__}.onnx")
    return {name: folder / f"{make.__name__}.onnx" for name, make in made.items()}


def test_the_sparse_files_are_sparse(files):
    for name in ("sparse fp32", "int8"):
        zeros = inspect.matrix_zeros(files[name])
        assert len(zeros) == 12
        assert all(found >= round(models.SPARSITY * size) for found, size in zeros.values())


def test_a_row_for_every_cell_and_variant(files):
    cells = [infer.Cell(1, 8, 1), infer.Cell(1, 128, 2)]
    rows = list(infer.measure(files, cells, budget=0, least=0.01))
    expected = [("1 x 8", 1, name) for name in files if name not in infer.ONCE] + [("1 x 128", 2, name) for name in files]
    assert [(row["batch x tokens"], row["threads"], row["variant"]) for row in rows] == expected
    assert all(row["10 %"] <= row["ms"] <= row["90 %"] for row in rows)
    assert [row["bar"] for row in rows] == ["", "", "", "", ">= 0.01 x, met"]
    assert [row["times plain"] for row in rows if row["variant"] == infer.PLAIN] == [1.0, 1.0]


def test_a_row_worked_by_hand():
    found = infer.row(infer.Cell(1, 128, 2), "int8", [1.0, 2.0, 4.0], [4.0, 4.0, 4.0], least=2.5)
    assert (found["ms"], found["10 %"], found["90 %"], found["rounds"]) == pytest.approx((2.0, 1.2, 3.6, 3))
    assert found["times plain"] == 2.0
    assert found["bar"] == ">= 2.5 x, missed"


def test_operators_are_those_that_take_time(files):
    rows = infer.operators(files, infer.Cell(1, 8, 1))
    assert {row["variant"] for row in rows} == set(files)
    assert all(row["ms"] > 0 and 1 <= row["%"] < 100 for row in rows)


def test_the_grid_is_the_promise():
    assert len(infer.GRID) == 16
    assert set(infer.QUICK) < set(infer.GRID)
    assert np.isclose(models.SPARSITY, 0.85)
    assert len(infer.VARIANTS) == 6
    assert set(infer.ONCE) < set(infer.VARIANTS)
    assert set(infer.BARS) == set(models.SHAPES)
