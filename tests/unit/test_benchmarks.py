"""The measurements' own arithmetic: memory, turns, ratios, tables, options."""

import json

import numpy as np
import pytest
from transformers import AutoConfig, BertForMaskedLM

from benchmarks import __main__ as all_of_them
from benchmarks import measuring, memory, train
from pruneonce.distillation import vocabulary


@pytest.fixture
def model(tiny_folder):
    config = AutoConfig.from_pretrained(tiny_folder)
    return BertForMaskedLM._from_config(config, attn_implementation="eager")


def test_memory_by_hand(model):
    config = model.config
    parts = memory.needed(config, parameters=1000, prunable=500, read=7, element=2, checkpointing=False)
    n, h, f, layers = memory.ROWS * memory.LENGTH, config.hidden_size, config.intermediate_size, config.num_hidden_layers
    assert (parts["student"], parts["teacher"], parts["masks"]) == (12_000, 4_000, 500)
    probabilities = memory.ROWS * config.num_attention_heads * memory.LENGTH**2
    assert parts["layers"] == layers * (2 * 6 * n * h + 2 * 2 * n * f + 4 * probabilities + 2 * 4 * n * h)
    assert parts["head"] == (4 * h + 2 * 7) * config.vocab_size
    assert memory.PIECE == vocabulary.PIECE
    less = memory.needed(config, parameters=1000, prunable=500, read=7, element=2, checkpointing=True)
    assert less["layers"] == parts["layers"] / layers + layers * 4 * n * h
    assert less["student"] == parts["student"]
    assert parts["must"] == 16_500 + parts["layers"] + parts["states"] + parts["head"]
    many = memory.needed(config, parameters=10**9, prunable=500, read=7, element=2, checkpointing=True)
    assert many["must"] == 20 * 10**9 + 500


def test_precisions_are_the_same_where_they_differ_less_than_seeds():
    draw = np.random.default_rng(0)
    fp32 = 5 - np.arange(41) / 41 + np.array([[0.0], [0.1], [-0.1]])
    rows, note = train.same_curve(fp32 + draw.normal(scale=0.01, size=fp32.shape), fp32)
    assert [row["steps"] for row in rows] == ["0-19", "20-39"]
    assert [row["within"] for row in rows] == ["yes", "yes"]
    assert note.startswith("bf16 is within noise")
    assert "in 2 of 2 windows" in note
    apart = fp32 + np.where(np.arange(41) < 20, 0.1, 0.3)
    rows, note = train.same_curve(apart, fp32)
    assert [row["within"] for row in rows] == ["yes", "no"]
    assert note.startswith("bf16 IS NOT within noise")
    assert "in 1 of 2 windows" in note
    assert "same seed: 0.30000" in note
    assert [row["steps"] for row in train.same_curve(fp32[:, :3], fp32[:, :3])[0]] == ["0-2"]


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
    said = capsys.readouterr().out
    assert "| b | a | c |\n| --- | --- | --- |\n| 1,234 | x |  |\n| 0.123 |  | 7 |" in said
    assert "a note" in said
    assert json.loads((tmp_path / "rows.json").read_text()) == {"one": rows, "two": rows}


def test_options_whose_path_is_not_there_are_left_out(tmp_path, monkeypatch):
    (tmp_path / "data/here").mkdir(parents=True)
    monkeypatch.setattr(all_of_them, "ROOT", tmp_path)
    words = ["--quick", "--raw", "data/here", "--splits", "data/nowhere", "--rounds", "2"]
    assert all_of_them.existing(words) == ["--quick", "--raw", "data/here", "--rounds", "2"]


@pytest.mark.parametrize(("words", "asked"), [([], ["first", "second"]), (["--parts", "second"], ["second"])])
def test_training_measures_all_parts_or_those_asked_for(monkeypatch, words, asked):
    done: list[str] = []
    parts = {name: lambda args, name=name: done.append(name) for name in ("first", "second")}
    monkeypatch.setattr(train, "PARTS", parts)
    monkeypatch.setattr("sys.argv", ["train", *words])
    train.main()
    assert done == asked
