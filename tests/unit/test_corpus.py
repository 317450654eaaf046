"""Token blocks and masking, on ids small enough to check by eye and on counts."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from pruneonce import text
from pruneonce.batch import IGNORED
from pruneonce.language import corpus


def test_pack_by_hand():
    blocks = corpus.pack([[10, 11, 12], [], [13, 14], [15]], block_tokens=5, first=2, last=3)
    assert list(blocks) == [[2, 10, 11, 12, 3], [2, 3, 3, 13, 3], [2, 14, 3, 15, 3]]


def test_pack_drops_the_incomplete_block():
    assert list(corpus.pack([[10]], block_tokens=5, first=2, last=3)) == []


def test_blocks_round_trip_over_several_batches(tmp_path):
    blocks = [[i, i + 1, i + 2] for i in range(10)]
    assert corpus.write_blocks(tmp_path / "b.arrow", iter(blocks), block_tokens=3, batch_rows=4) == 10
    read = corpus.read_blocks(tmp_path / "b.arrow")
    assert len(read) == 10
    np.testing.assert_array_equal(read[[9, 0, 4]]["tokens"], [[9, 10, 11], [0, 1, 2], [4, 5, 6]])


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
    corpus.write_blocks(tmp_path / "b.arrow", rows, block_tokens=16)
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


def test_an_epoch_shows_every_row_once_and_shuffles_anew(blocks, tokenizer):
    batches = corpus.MaskedBlocks(blocks, tokenizer, batch_size=3, probability=0.3, seed=1)
    epochs = [np.concatenate([batches.rows(3 * e + i) for i in range(3)]) for e in range(2)]
    assert [sorted(e) for e in epochs] == [list(range(9))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()


def test_fewer_blocks_than_a_batch_are_a_batch(blocks, tokenizer):
    batches = corpus.MaskedBlocks(blocks, tokenizer, batch_size=20, probability=0.3, seed=0)
    assert len(batches) == 1
    assert sorted(batches.rows(5)) == list(range(9))


def write(tmp_path, tokenizer, documents, **changes):
    settings = {"block_tokens": 8, "held_out_ratio": 0.3, "max_tokens": None, "exclude": (), "seed": 0}
    return corpus.write_corpus(lambda: iter(documents), tokenizer, tmp_path, **settings | changes)


def test_write_corpus_counts_what_it_drops(tmp_path, tokenizer):
    documents = ["Fresh bread", "light snow", "", "fresh  BREAD", "the cook ruined a garlic sauce", "apple pie"] * 3
    counts = write(tmp_path, tokenizer, documents, exclude=["APPLE pie"])
    assert {k: counts[k] for k in ("documents", "empty", "duplicate", "in_test")} == {
        "documents": 3,
        "empty": 3,
        "duplicate": 9,
        "in_test": 3,
    }


def test_write_corpus_keeps_the_two_parts_apart(tmp_path, tokenizer):
    """Each document is one letter in its own spelling: a token stands in one part only."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    counts = write(tmp_path, tokenizer, [" ".join([c] * 13) for c in letters], block_tokens=9)
    parts = {
        name: {int(t) for row in corpus.read_blocks(tmp_path / f"{name}.arrow")[:]["tokens"] for t in row}
        for name in ("train", "held_out")
    }
    special = {tokenizer.cls_token_id, tokenizer.sep_token_id}
    assert parts["train"] & parts["held_out"] == special
    assert parts["train"] | parts["held_out"] == special | set(tokenizer.convert_tokens_to_ids(list(letters)))
    assert len(parts["held_out"]) > 2
    assert counts["train_tokens"] == 9 * counts["train_blocks"]
    assert counts["train_blocks"] + counts["held_out_blocks"] == 26 * 14 // 7


def test_max_tokens_limits_training_only(tmp_path, tokenizer):
    documents = [f"{a} {b} the oven improved the wooden spoon" for a in "abcdefgh" for b in "xyz"]
    free = write(tmp_path, tokenizer, documents)
    counts = write(tmp_path, tokenizer, documents, max_tokens=25)
    assert counts["train_blocks"] == 3
    assert counts["held_out_blocks"] == free["held_out_blocks"] > 0
    assert len(corpus.read_blocks(tmp_path / "train.arrow")) == 3


@pytest.mark.parametrize("chunk_characters", [1, 10, 1000])
def test_encode_has_no_special_tokens_and_cuts_nothing(tokenizer, chunk_characters):
    texts = ["apple pie", "a " * 200, "b"]
    found = list(corpus.encode(iter(texts), tokenizer, chunk_characters=chunk_characters))
    assert [len(ids) for ids in found] == [len(tokenizer.tokenize(t)) for t in texts]
    assert len(found[1]) == 200
    assert tokenizer.cls_token_id not in found[0]


def test_encode_of_nothing(tokenizer):
    assert list(corpus.encode(iter([]), tokenizer)) == []


# Documents of 20 kB that exist only while they are read; peak resident memory in bytes after n of them, then after 4 n.
STREAM = """
import json, resource, sys
from pathlib import Path
from pruneonce.language import corpus
from pruneonce.models import checkpoint

def documents(count):
    words = "the cook improved a garlic sauce with light fresh bread and snow".split()
    for i in range(count):
        yield f"document {i} " + " ".join(words[(i + j * j) % len(words)] for j in range(3500))

peaks = []
for count in (150, 600):
    corpus.write_corpus(
        lambda: documents(count), checkpoint.load_tokenizer(Path(sys.argv[1])), Path(sys.argv[2]),
        block_tokens=128, held_out_ratio=0.02, max_tokens=None, exclude=(), seed=0,
    )
    peaks.append(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(peaks))
"""


def test_a_corpus_is_streamed(tmp_path, tiny_folder):
    """Four times the text (9 MB more) takes no more memory: neither text nor tokens (8 bytes and more each) are held."""
    words = [sys.executable, "-c", STREAM, str(tiny_folder), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    small, large = json.loads(done.stdout.splitlines()[-1])
    written = (tmp_path / "train.arrow").stat().st_size
    assert written > 8e6
    assert large - small < 4e6
