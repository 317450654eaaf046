"""Masking and batches, on counts and on ids small enough to check by eye."""

import numpy as np
import pytest
import torch

from pruneonce import text
from pruneonce.batch import IGNORED
from pruneonce.language import blocks as block_files
from pruneonce.language import corpus


def test_text_key_differs_by_word_and_seed():
    assert text.text_key("A  b\n") == text.text_key("a B")
    assert text.text_key("a b") != text.text_key("ab")
    assert text.text_key("a b") != text.text_key("a b", 1)


def test_text_key_is_uniform():
    keys = np.array([text.text_key(f"text {i}") / 2**64 for i in range(4000)])
    assert np.histogram(keys, bins=4, range=(0, 1))[0] == pytest.approx([1000] * 4, abs=120)


def test_masking_is_80_10_10():
    tokens = torch.randint(10, 1000, (200, 250), generator=torch.Generator().manual_seed(0))
    tokens[:, 0], tokens[:, -1] = 2, 3
    inputs, labels = corpus.mask_tokens(
        tokens,
        probability=0.15,
        mask_token=4,
        vocabulary=100_000,
        special=[0, 2, 3, 4],
        generator=torch.Generator().manual_seed(1),
    )
    chosen = labels != IGNORED
    assert torch.equal(labels[chosen], tokens[chosen])
    assert torch.equal(inputs[~chosen], tokens[~chosen])
    assert not chosen[:, [0, -1]].any()
    assert chosen[:, 1:-1].float().mean().item() == pytest.approx(0.15, abs=0.005)
    masked = (inputs[chosen] == 4).float().mean().item()
    same = (inputs[chosen] == tokens[chosen]).float().mean().item()
    assert masked == pytest.approx(0.8, abs=0.02)
    assert same == pytest.approx(0.1, abs=0.015)


@pytest.fixture
def blocks(tmp_path):
    rows = [[2, *range(10 * i + 5, 10 * i + 19), 3] for i in range(9)]
    block_files.write_blocks(tmp_path / "b.arrow", [np.array(rows)], block_tokens=16)
    return corpus.read_blocks(tmp_path / "b.arrow")


def test_masked_blocks_are_a_function_of_the_step(blocks, tokenizer):
    def batches(seed):
        return corpus.MaskedBlocks(blocks, tokenizer, batch_size=4, probability=0.3, seed=seed)

    one, two = batches(1), batches(1)
    assert len(one) == 2
    for step in (5, 0, 3):  # in any order
        for key, value in one(step).items():
            assert torch.equal(value, two(step)[key])
    assert not torch.equal(one(0)["input_ids"], one(2)["input_ids"])
    assert not torch.equal(one(0)["labels"], batches(2)(0)["labels"])
    batch = one(0)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == dict.fromkeys(
        ("input_ids", "labels", "attention_mask"), ((4, 16), torch.int64)
    )
    assert (batch["labels"] != IGNORED).any()
    assert int(batch["input_ids"].max()) < len(tokenizer)


def test_the_same_batches_without_masks_are_the_text_itself(blocks, tokenizer):
    masked = corpus.MaskedBlocks(blocks, tokenizer, batch_size=4, probability=0.3, seed=1)
    plain = masked.unmasked()
    for step in (0, 2):
        assert plain(step)["input_ids"].tolist() == blocks[masked.rows(step)]["tokens"].tolist()
        assert (plain(step)["labels"] == IGNORED).all()
        assert (masked(step)["labels"] != IGNORED).any(), "the other one masks still"


def test_an_epoch_shows_every_row_once_and_shuffles_anew(blocks, tokenizer):
    batches = corpus.MaskedBlocks(blocks, tokenizer, batch_size=3, probability=0.3, seed=1)
    epochs = [np.concatenate([batches.rows(3 * e + i) for i in range(3)]) for e in range(2)]
    assert [sorted(e) for e in epochs] == [list(range(9))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()


def test_fewer_blocks_than_a_batch_are_a_batch(blocks, tokenizer):
    batches = corpus.MaskedBlocks(blocks, tokenizer, batch_size=20, probability=0.3, seed=0)
    assert len(batches) == 1
    assert sorted(batches.rows(5)) == list(range(9))
