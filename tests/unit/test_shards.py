"""Texts become tokens, chunk by chunk."""

import pytest

from pruneonce.language import shards


@pytest.mark.parametrize("chunk_characters", [1, 10, 1000])
def test_encode_has_no_special_tokens_and_cuts_nothing(tokenizer, chunk_characters):
    texts = ["apple pie", "a " * 200, "b"]
    found = list(shards.encode(iter(texts), tokenizer, chunk_characters=chunk_characters))
    assert [len(ids) for ids in found] == [len(tokenizer.tokenize(t)) for t in texts]
    assert len(found[1]) == 200
    assert tokenizer.cls_token_id not in found[0]


def test_encode_of_nothing(tokenizer):
    assert list(shards.encode(iter([]), tokenizer)) == []
