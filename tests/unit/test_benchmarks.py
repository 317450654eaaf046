"""The benchmarks: memory, sizes, precisions, turns, ratios, tables, options."""

import json
import math

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from transformers import AutoConfig

from benchmarks import __main__ as all_of_them
from benchmarks import batches, measuring, memory, models, precision, size, train
from pruneonce.sparsity import masks


@pytest.fixture
def own_engine():
    """Accelerate's state of this process is as for a new process, before and after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("own_engine")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_is_measured_beside_what_is_computed(tiny_folder, checkpointing):
    config = AutoConfig.from_pretrained(tiny_folder, attn_implementation="eager")
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.vocab_size = batches.VOCABULARY
    found = memory.step(config, rows=2, length=16, checkpointing=checkpointing)
    assert list(found) == ["measured", "model", "gradients", "layers", "passing", "peak"]
    assert found["measured"] >= 0
    student = models.BertForMaskedLM(config)
    parameters = sum(p.numel() for p in student.parameters())
    prunable = sum(linear.weight.numel() for linear in masks.prunable(student, models.PRUNABLE).values())
    assert found["model"] == 16 * parameters + prunable  # 4 weight, 8 moments, 4 teacher; 1 mask
    assert found["gradients"] == 4 * parameters


def test_sizes_are_those_of_the_model():
    sizes = size.Sizes.of("MiniLM-L6")
    assert (len(sizes.matrices), len(sizes.tables)) == (6 * 6, 3)
    assert sum(map(math.prod, sizes.matrices.values())) == 6 * (4 * 384**2 + 2 * 384 * 1536)
    assert sum(map(math.prod, sizes.tables.values())) == 384 * (30522 + 512 + 2)
    norms, pooler, head = 13 * 2 * 384, 384**2 + 384, 8 * 384 + 8
    assert sum(map(math.prod, sizes.others.values())) == 6 * (5 * 384 + 1536) + norms + pooler + head


def test_precisions_are_the_same_where_they_differ_less_than_seeds():
    draw = np.random.default_rng(0)
    fp32 = 5 - np.arange(41) / 41 + np.array([[0.0], [0.1], [-0.1]])
    rows, note = precision.compare(fp32 + draw.normal(scale=0.01, size=fp32.shape), fp32)
    assert [row["steps"] for row in rows] == ["0-19", "20-39"]
    assert [row["within"] for row in rows] == ["yes", "yes"]
    assert note.startswith("bf16 is within noise")
    assert "in 2 of 2 windows" in note
    apart = fp32 + np.where(np.arange(41) < 20, 0.1, 0.3)
    rows, note = precision.compare(apart, fp32)
    assert [row["within"] for row in rows] == ["yes", "no"]
    assert note.startswith("bf16 IS NOT within noise")
    assert "in 1 of 2 windows" in note
    assert "same seed: 0.30000" in note
    assert [row["steps"] for row in precision.compare(fp32[:, :3], fp32[:, :3])[0]] == ["0-2"]


def test_sides_take_turns():
    calls: list[str] = []

    def side(name: str, value: float):
        return lambda: calls.append(name) or value

    found = measuring.in_turn({"a": side("a", 2.0), "b": side("b", 1.0)}, 3)
    assert "".join(calls) == "ababab"
    assert found == {"a": [2.0] * 3, "b": [1.0] * 3}


def test_a_ratio_is_the_median_over_rounds():
    assert measuring.ratio([2.0, 9.0, 4.0], [1.0, 1.0, 1.0]) == 4.0


def test_a_table_keeps_columns_in_order_and_writes_its_rows(tmp_path, capsys):
    rows = [{"b": 1234.5, "a": "x"}, {"b": 0.12345, "c": 7}]
    for title in ("one", "two"):
        measuring.publish(title, rows, "a note", file=tmp_path / "rows.json")
    printed = capsys.readouterr().out
    assert "| b | a | c |\n| --- | --- | --- |\n| 1,234 | x |  |\n| 0.123 |  | 7 |" in printed
    assert "a note" in printed
    assert json.loads((tmp_path / "rows.json").read_text()) == {"one": rows, "two": rows}


def test_options_whose_path_is_not_there_are_left_out(tmp_path, monkeypatch):
    (tmp_path / "data/here").mkdir(parents=True)
    monkeypatch.setattr(all_of_them, "ROOT", tmp_path)
    words = ["--quick", "--raw", "data/here", "--splits", "data/nowhere", "--rounds", "2"]
    assert all_of_them.existing(words) == ["--quick", "--raw", "data/here", "--rounds", "2"]


@pytest.mark.parametrize(("words", "expected"), [([], ["first", "second"]), (["--parts", "second"], ["second"])])
def test_training_measures_all_parts_or_the_named_ones(monkeypatch, words, expected):
    done: list[str] = []
    parts = {name: lambda args, name=name: done.append(name) for name in ("first", "second")}
    monkeypatch.setattr(train, "PARTS", parts)
    monkeypatch.setattr("sys.argv", ["train", *words])
    train.main()
    assert done == expected
