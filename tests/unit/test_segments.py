"""Segment pairs, on ids small enough to check by eye and on counts."""

import numpy as np
import pytest
import torch

from pipeline.kept import Kept
from pruneonce.batch import IGNORED
from pruneonce.errors import DataError
from pruneonce.language import corpus, preparation, segments
from pruneonce.language.segments import NEXT, RANDOM, Pair

PERIOD = 7


def found(documents, *, room=10, short_ratio=0.0, ends=frozenset({PERIOD}), seed=0) -> list[Pair]:
    made = segments.pairs(iter(documents), room=room, short_ratio=short_ratio, ends=set(ends), seed=seed)
    return [pair for _, of_document in made for pair in of_document]


def letters(begin: int, count: int) -> list[int]:
    """Tokens of their own for each document: where a token comes from can be told."""
    return list(range(begin, begin + count))


def test_documents_of_two_tokens_by_hand():
    """One cut is possible, and a stranger starts where its second token stands."""
    pairs = found([[11, 12], [21, 22]] * 20)
    assert len(pairs) >= 40
    wanted = {((11,), (12,), NEXT, 2), ((21,), (22,), NEXT, 2)}
    wanted |= {((a,), (b,), RANDOM, 1) for a in (11, 21) for b in (12, 22)}
    assert {(tuple(p.first), tuple(p.second), p.label, p.used) for p in pairs} == wanted


def test_about_half_follow_and_the_same_seed_gives_the_same_pairs():
    documents = [letters(1000 * i, 300) for i in range(30)]
    pairs = found(documents)
    share = sum(p.label == NEXT for p in pairs) / len(pairs)
    assert len(pairs) > 1000
    assert share == pytest.approx(0.5, abs=0.05)
    assert found(documents) == pairs
    assert found(documents, seed=1) != pairs


def test_a_cut_is_where_a_sentence_begins_if_one_does():
    documents = [[t for i in range(20) for t in (*letters(1000 * d + 10 * i, 3), PERIOD)] for d in range(1, 60)]
    pairs = found(documents, room=12)
    at_sentence = [p.first[-1] == PERIOD for p in pairs]
    assert [p.second[0] % 10 == 0 for p in pairs if p.first[-1] == PERIOD] == [True] * sum(at_sentence)
    # A span of 12 tokens holds an end of every fourth; the end of a document may hold none, and its stranger tells nothing.
    assert np.mean(at_sentence) > 0.8
    strangers = {p.second[0] % 10 for p in pairs if p.first[-1] != PERIOD and p.label == RANDOM}
    assert {0, 1, 2} < strangers
    assert {p.label for p in pairs} == {NEXT, RANDOM}


def test_spans_fill_the_room_but_for_short_ones_of_any_length():
    documents = [letters(10_000 * i, 4000) for i in range(1, 5)]
    full = [len(p.first) + len(p.second) for p in found(documents) if p.label == NEXT]
    assert np.mean(np.array(full) == 10) > 0.95  # the ends of documents are shorter
    short = [len(p.first) + len(p.second) for p in found(documents, short_ratio=1.0) if p.label == NEXT]
    shares = np.bincount(short, minlength=11)[2:] / len(short)
    assert shares == pytest.approx([1 / 9] * 9, abs=0.03)


def test_padding_does_not_tell_which_pairs_follow():
    """Short documents: a stranger that filled up the block would be known by its length."""
    documents = [letters(100 * i, 12) for i in range(1, 3000)]
    pairs = found(documents, room=100)
    mean = {label: np.mean([len(p.second) for p in pairs if p.label == label and p.first[0] % 100 == 0]) for label in (0, 1)}
    assert 0 < mean[NEXT] - mean[RANDOM] < 3.5, mean  # what a stranger lacks is what its document did not have
    assert max(len(p.first) + len(p.second) for p in pairs) <= 12


def test_a_stranger_is_as_long_as_what_would_follow_if_its_document_is_long_enough():
    documents = [letters(100 * i, 40) for i in range(1, 2000)]
    pairs = [p for p in found(documents, room=20) if p.first[0] % 100 <= 20]  # what follows fills the room
    assert {len(p.first) + len(p.second) for p in pairs} == {20}
    assert {p.label for p in pairs} == {NEXT, RANDOM}
    assert {p.second[0] % 100 for p in pairs if p.label == RANDOM} == set(range(1, 40))


def test_one_document_has_no_stranger():
    with pytest.raises(DataError, match=r"two documents or more .* found one.*next_sentence to false"):
        found([letters(10, 50), []])
    assert found([]) == []


def test_documents_are_read_a_window_at_a_time():
    taken = 0

    def documents():
        nonlocal taken
        for i in range(5 * segments.WINDOW):
            taken += 1
            yield letters(10 * i, 5)

    made = segments.pairs(documents(), room=10, short_ratio=0.0, ends=set(), seed=0)
    next(made)
    assert taken == segments.WINDOW
    assert len(list(made)) == 5 * segments.WINDOW - 1


def test_the_last_document_alone_in_its_window_has_strangers_before_it():
    count = segments.WINDOW + 1
    pairs = found([letters(100 * i, 40) for i in range(1, count + 1)])
    last = [p for p in pairs if p.first[0] // 100 == count]
    assert {p.label for p in last} == {NEXT, RANDOM}
    assert all(p.second[0] // 100 < count for p in last if p.label == RANDOM)


def test_sentence_ends_are_those_the_vocabulary_has(tokenizer):
    has = {mark for mark in segments.SENTENCE_ENDS if mark in tokenizer.get_vocab()}
    assert segments.sentence_ends(tokenizer) == {tokenizer.get_vocab()[mark] for mark in has}
    assert "." in has


@pytest.fixture
def written(tmp_path, tokenizer):
    documents = [letters(10 + i, 3 + i) for i in range(40)]
    path = tmp_path / "pairs.arrow"
    settings = {"block_tokens": 16, "max_tokens": None, "short_ratio": 0.1, "seed": 3}
    counts = segments.write_pairs(path, map(np.array, documents), tokenizer, **settings)
    return corpus.read_blocks(path), counts, documents


def test_what_is_written_is_laid_out_as_bert_reads_it(written, tokenizer):
    blocks, counts, _ = written
    assert set(blocks.column_names) == {"tokens", "token_type_ids", "attention_mask", "next_sentence_label"}
    assert len(blocks) == counts["blocks"] > 100
    for row in blocks:
        length = int(row["attention_mask"].sum())
        ids, kinds = row["tokens"].tolist(), row["token_type_ids"].tolist()
        assert row["attention_mask"].tolist() == [1] * length + [0] * (16 - length)
        first = kinds.index(1)
        assert kinds == [0] * first + [1] * (length - first) + [0] * (16 - length)
        assert ids[0] == tokenizer.cls_token_id
        assert ids[first - 1] == ids[length - 1] == tokenizer.sep_token_id
        assert ids[length:] == [tokenizer.pad_token_id] * (16 - length)
        assert not {*ids[1 : first - 1], *ids[first : length - 1]} & set(tokenizer.all_special_ids)


def test_every_token_is_counted(written):
    blocks, counts, documents = written
    assert counts["tokens"] == blocks[:]["attention_mask"].sum()
    assert counts["next_pairs"] == (blocks[:]["next_sentence_label"] == NEXT).sum()
    pairs = segments.pairs(documents, room=13, short_ratio=0.1, ends=set(), seed=3)
    used = sum(pair.used for _, of_document in pairs for pair in of_document)
    assert counts["left_over_tokens"] == sum(map(len, documents)) - used
    assert 0 < counts["left_over_tokens"] <= len(documents)


def test_max_tokens_ends_the_file(tmp_path, tokenizer):
    documents = [letters(10, 100)] * 20
    settings = {"block_tokens": 16, "short_ratio": 0.0, "seed": 0}
    counts = segments.write_pairs(tmp_path / "a.arrow", map(np.array, documents), tokenizer, max_tokens=200, **settings)
    assert 200 <= counts["tokens"] < 216
    least = segments.write_pairs(tmp_path / "b.arrow", map(np.array, documents), tokenizer, max_tokens=1, **settings)
    assert least["blocks"] == 1


def test_batches_of_pairs_have_all_that_a_model_and_its_losses_read(written, tokenizer):
    blocks, _, _ = written
    batches = corpus.MaskedBlocks(blocks, tokenizer, batch_size=8, probability=0.5, seed=1)
    batch, rows = batches(3), batches.rows(3)
    assert {k: tuple(v.shape) for k, v in batch.items()} == {
        **dict.fromkeys(("input_ids", "labels", "attention_mask", "token_type_ids"), (8, 16)),
        "next_sentence_label": (8,),
    }
    assert {v.dtype for v in batch.values()} == {torch.int64}
    for name in ("attention_mask", "token_type_ids", "next_sentence_label"):
        np.testing.assert_array_equal(batch[name], blocks[rows][name])
    chosen = batch["labels"] != IGNORED
    assert chosen.any()
    assert batch["attention_mask"][chosen].all(), "padding is never masked"
    np.testing.assert_array_equal(batch["input_ids"][~chosen], np.asarray(blocks[rows]["tokens"])[~chosen])
    assert all(torch.equal(batch[name], tensor) for name, tensor in batches(3).items())


def test_a_corpus_of_pairs_has_two_parts(tmp_path, tokenizer):
    documents = [f"{a} {b} the oven improved the wooden spoon . light snow" for a in "abcdefgh" for b in "uvwxyz"]

    def write(path, texts, tokenizer, **settings):
        return segments.write_pairs(path, texts, tokenizer, short_ratio=0.1, seed=0, **settings)

    counts = preparation.write_corpus(
        documents,
        tokenizer,
        tmp_path,
        keep=Kept(tmp_path),
        block_tokens=16,
        held_out_ratio=0.3,
        max_tokens=None,
        exclude=(),
        seed=0,
        write=write,
    )
    assert counts["documents"] == 48
    for part in ("train", "held_out"):
        blocks = corpus.read_blocks(tmp_path / f"{part}.arrow")
        assert len(blocks) == counts[f"{part}_blocks"] > 10
        assert 0 < counts[f"{part}_next_pairs"] < counts[f"{part}_blocks"]
        assert counts[f"{part}_tokens"] == blocks[:]["attention_mask"].sum()
