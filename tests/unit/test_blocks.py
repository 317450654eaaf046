"""Packing and the Arrow files of blocks, on ids small enough to check by eye."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from pruneonce.language import blocks, corpus


def arrays(documents):
    return [np.array(tokens, np.int32) for tokens in documents]


def packed(documents, **settings):
    return [
        row
        for batch in blocks.pack(arrays(documents), block_tokens=5, first=2, last=3, **settings)
        for row in batch.tolist()
    ]


@pytest.mark.parametrize("batch_blocks", [1, 2, 1024])
def test_pack_by_hand(batch_blocks):
    found = packed([[10, 11, 12], [], [13, 14], [15]], batch_blocks=batch_blocks)
    assert found == [[2, 10, 11, 12, 3], [2, 3, 3, 13, 3], [2, 14, 3, 15, 3]]


def test_pack_drops_the_incomplete_block():
    assert packed([[10]]) == packed([]) == []


def test_blocks_round_trip_over_several_batches(tmp_path):
    rows = np.array([[i, i + 1, i + 2] for i in range(10)])
    assert blocks.write_blocks(tmp_path / "b.arrow", [rows[:4], rows[4:8], rows[8:]], block_tokens=3) == 10
    read = corpus.read_blocks(tmp_path / "b.arrow")
    assert len(read) == 10
    np.testing.assert_array_equal(read[[9, 0, 4]]["tokens"], [[9, 10, 11], [0, 1, 2], [4, 5, 6]])


def test_arrays_are_written_as_rows_are(tmp_path):
    """The bytes are those of `write_rows`, which segment pairs use: a column of lists."""
    rows = np.arange(3000 * 5).reshape(-1, 5)
    schema = pa.schema({"tokens": pa.list_(pa.int32(), 5)})
    blocks.write_rows(tmp_path / "rows", ({"tokens": row} for row in rows.tolist()), schema)
    blocks.write_blocks(tmp_path / "arrays", [rows[:1024], rows[1024:2048], rows[2048:]], block_tokens=5)
    assert digest(tmp_path / "rows") == digest(tmp_path / "arrays")


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("max_tokens", "count"), [(1, 1), (14, 2), (15, 3), (5 * 1024, 1024), (5 * 1100, 1100), (None, 1333)]
)
def test_packed_documents_are_as_many_blocks_as_asked_for(tmp_path, tokenizer, max_tokens, count):
    path, documents = tmp_path / "b.arrow", arrays([list(range(10, 17))] * 500)
    counts = blocks.write_packed(path, documents, tokenizer, block_tokens=5, max_tokens=max_tokens)
    assert counts == {"blocks": count, "tokens": 5 * count}
    assert len(corpus.read_blocks(path)) == count
