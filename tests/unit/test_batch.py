"""What a model reads of a batch and says of it, its pieces, and the seed of its step."""

from types import SimpleNamespace

import pytest
import torch

from pruneonce.batch import inputs, logits, mix, pieces


def test_a_model_reads_what_there_is_and_no_label(batch):
    assert list(inputs(batch)) == ["input_ids", "attention_mask"]
    types = batch | {"token_type_ids": torch.zeros_like(batch["input_ids"])}
    assert list(inputs(types)) == ["input_ids", "attention_mask", "token_type_ids"]


def test_several_outputs_are_stacked_behind_the_batch():
    out = {"start": torch.zeros(3, 7), "end": torch.ones(3, 7)}
    assert logits(out, ["end"]) is out["end"]
    found = logits(out, ["start", "end"])
    assert found.shape == (3, 2, 7)
    assert found[:, 1].eq(1).all()


@pytest.mark.parametrize(
    ("processes", "micro_batches", "rows", "sizes"), [(1, 1, 7, [7]), (2, 2, 7, [2, 2, 2, 1]), (4, 2, 3, [1] * 3)]
)
def test_pieces_are_all_rows_once(processes, micro_batches, rows, sizes):
    engine = SimpleNamespace(num_processes=processes, gradient_accumulation_steps=micro_batches)
    batch = {"attention_mask": torch.ones(rows, 5), "labels": torch.arange(rows)}
    found = pieces(batch, engine)
    assert [len(piece["attention_mask"]) for piece in found] == sizes
    assert sorted(torch.cat([piece["labels"] for piece in found]).tolist()) == list(range(rows))


def test_mix_keeps_neighbouring_seeds_and_steps_apart():
    seeds = {mix(seed, step) for seed in range(20) for step in range(2000)}
    assert len(seeds) == 40_000
    assert all(0 <= s < 2**63 for s in (*seeds, mix(2**40, 2**40)))
