"""Served texts have the token ids of the splits: cut at the same place, alone and in pairs, and in every window."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneonce.models import checkpoint
from pruneonce.serving.texts import Texts
from pruneonce.tasks import splits
from pruneonce.tasks.answering import QuestionAnswering
from pruneonce.tasks.examples import Example
from tests.conftest import TINY

WORDS = ("the", "old", "harbour", "left", "river", "again", "late", "heavy", "rain", "éa", "xyzzy", ".", ",")
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=24).map(" ".join)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(transformers' tokenizer, the text of its tokenizer.json)"""
    tokenizer = checkpoint.load_tokenizer(TINY / "model")
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer("a", truncation=True, max_length=5, padding="max_length")  # what is saved then cuts and pads
    tokenizer.save_pretrained(folder)
    return checkpoint.load_tokenizer(TINY / "model"), (folder / "tokenizer.json").read_text()


@settings(max_examples=60, deadline=None)
@given(text=TEXT, second=st.none() | TEXT, max_tokens=st.integers(6, 40))
def test_a_row_is_cut_as_in_the_splits(pair, text, second, max_tokens):
    tokenizer, written = pair
    texts = (text,) if second is None else (text, second)
    columns, _ = splits.encode_texts([Example(texts, None)], tokenizer, max_tokens=max_tokens)
    row = Texts(written, max_tokens=max_tokens).row(*texts)
    assert row.ids == columns["input_ids"][0]
    if second is not None:
        assert row.types == columns["token_type_ids"][0]
    feeds = row.feeds(["input_ids", "attention_mask"])
    assert feeds["input_ids"].tolist() == [row.ids]
    assert feeds["attention_mask"].tolist() == [[1] * len(row.ids)]


@settings(max_examples=40, deadline=None)
@given(question=TEXT, context=TEXT, max_tokens=st.integers(20, 30), stride=st.integers(1, 4))
def test_windows_are_those_of_the_splits(pair, question, context, max_tokens, stride):
    tokenizer, written = pair
    kind = QuestionAnswering("f1", stride_tokens=stride, max_answer_tokens=3, n_best=5, null_threshold=None)
    columns, _ = kind.encode([Example((question, context), ())], tokenizer, max_tokens=max_tokens)
    windows = list(Texts(written, max_tokens=max_tokens).windows(question, context, stride_tokens=stride))
    assert [row.ids for row in windows] == columns["input_ids"]
    begins = [[b if part == 1 else -1 for (b, _), part in zip(r.offsets, r.parts, strict=True)] for r in windows]
    assert begins == columns["begins"]
