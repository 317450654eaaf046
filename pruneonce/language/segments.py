"""Pairs of segments for next-sentence prediction: [CLS] A [SEP] B [SEP]. B follows A, or is of another document.

A span of a document is cut in two where a sentence begins, or anywhere if none does. In half of the pairs B is the second
part. In the others B has as many tokens of another document, from a place of the same kind. The second part then begins
the next span, so all text is used. Spans fill the block, except for a share of short ones of random length.
Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1 and appendix A.2, and its create_pretraining_data.py.
Difference: there, B of a random pair fills up the block. Here it is as long as the true B: the padding does not show the
label.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pruneonce.errors import DataError
from pruneonce.language.blocks import write_rows

NEXT, RANDOM = 0, 1  # `next_sentence_label` of transformers: 1 for a B that does not follow
WINDOW = 500  # documents; B of a random pair is from the same window or the one before
SENTENCE_ENDS = ".!?。！？"


class Document(NamedTuple):
    """One document of the corpus."""

    tokens: list[int]
    begins: list[int]  # positions above 0 where a sentence begins, in order


class Pair(NamedTuple):
    """One example."""

    first: list[int]
    second: list[int]
    label: int
    used: int  # tokens of its own document


def sentence_ends(tokenizer) -> set[int]:
    """Return the ids of the tokens that end a sentence, as far as the vocabulary has them."""
    ids = {tokenizer.convert_tokens_to_ids(mark) for mark in SENTENCE_ENDS}
    return ids - {tokenizer.unk_token_id, None}


def pairs(
    documents: Iterable[list[int]], *, room: int, short_ratio: float, ends: set[int], seed: int
) -> Iterator[tuple[list[int], list[Pair]]]:
    """Yield each document with its pairs, in order: a function of the documents and the seed.

    room: tokens of A and B together, at least 2. short_ratio: share of spans whose length is uniform in [2, room].
    At most one token of a document is in no pair. Raises DataError for a single document.
    """
    draw = np.random.default_rng(seed)
    before: list[Document] = []
    for window in _windows(documents, ends):
        pool = [*before, *window]
        if len(pool) == 1:
            raise DataError(
                "expected two documents or more in each part of the corpus, found one: a random pair's second segment is "
                "from another. Add documents, or set prepare_corpus.next_sentence to false."
            )
        for index, document in enumerate(window, len(before)):
            others = pool[:index] + pool[index + 1 :]
            yield document.tokens, list(_pairs_of(document, others, room, short_ratio, draw))
        before = window


def _windows(documents: Iterable[list[int]], ends: set[int]) -> Iterator[list[Document]]:
    """Return the documents that are not empty, WINDOW at a time."""
    full = (tokens for tokens in documents if tokens)
    parsed = (Document(tokens, [i for i in range(1, len(tokens)) if tokens[i - 1] in ends]) for tokens in full)
    return iter(lambda: list(islice(parsed, WINDOW)), [])


def _pairs_of(
    document: Document, others: Sequence[Document], room: int, short_ratio: float, draw: np.random.Generator
) -> Iterator[Pair]:
    """Yield the pairs of one document."""
    tokens, begins = document
    start = 0
    while len(tokens) - start >= 2:
        length = int(draw.integers(2, room + 1)) if draw.random() < short_ratio else room
        end = min(start + length, len(tokens))
        cut = _begin(begins, start + 1, end, draw)
        first, rest = tokens[start:cut], tokens[cut:end]
        if draw.random() < 0.5:
            yield Pair(first, rest, NEXT, end - start)
            start = end
        else:
            other = others[int(draw.integers(len(others)))]
            low = min(1, len(other.tokens) - 1)
            high = max(low + 1, len(other.tokens) - len(rest) + 1)  # as many tokens follow, where the document has them
            place = _begin(other.begins if cut in begins else [], low, high, draw)
            yield Pair(first, other.tokens[place : place + len(rest)], RANDOM, cut - start)
            start = cut


def _begin(begins: Sequence[int], low: int, high: int, draw: np.random.Generator) -> int:
    """Draw one of `begins` in [low, high), with equal chances; if there is none, one of all positions there. high > low."""
    left, right = bisect_left(begins, low), bisect_left(begins, high)
    return begins[int(draw.integers(left, right))] if left < right else int(draw.integers(low, high))


def write_pairs(
    path: Path,
    documents: Iterable[np.ndarray],
    tokenizer,
    *,
    block_tokens: int,
    max_tokens: int | None,
    short_ratio: float,
    seed: int,
) -> dict[str, int]:
    """Stream the documents' pairs into an Arrow file, until it holds `max_tokens`. Returns counts of what was written.

    Columns, see `schema`: token_type_ids is 1 for B [SEP], attention_mask is 0 at padding.
    Of the counts, left_over_tokens are the tokens of documents that are in no pair.
    """
    marks = {"first": tokenizer.cls_token_id, "last": tokenizer.sep_token_id, "pad": tokenizer.pad_token_id}
    counts = Counter(blocks=0, tokens=0, next_pairs=0, left_over_tokens=0)
    lists, ends = (tokens.tolist() for tokens in documents), sentence_ends(tokenizer)
    by_document = pairs(lists, room=block_tokens - 3, short_ratio=short_ratio, ends=ends, seed=seed)

    def rows() -> Iterator[dict[str, Any]]:
        for tokens, its_pairs in by_document:
            counts["left_over_tokens"] += len(tokens) - sum(pair.used for pair in its_pairs)
            for pair in its_pairs:
                if max_tokens is not None and counts["blocks"] and counts["tokens"] >= max_tokens:
                    return
                row = _row(pair, block_tokens, **marks)
                counts.update(blocks=1, tokens=sum(row["attention_mask"]), next_pairs=int(pair.label == NEXT))
                yield row

    write_rows(path, rows(), schema(block_tokens))
    return dict(counts)


def schema(block_tokens: int) -> pa.Schema:
    """Return the columns of a corpus of segment pairs."""
    block = pa.list_(pa.int8(), block_tokens)
    columns = {"tokens": pa.list_(pa.int32(), block_tokens), "token_type_ids": block, "attention_mask": block}
    return pa.schema({**columns, "next_sentence_label": pa.int8()})


def _row(pair: Pair, block_tokens: int, *, first: int, last: int, pad: int) -> dict[str, Any]:
    a, b = [first, *pair.first, last], [*pair.second, last]
    padding = [0] * (block_tokens - len(a) - len(b))
    return {
        "tokens": [*a, *b, *[pad] * len(padding)],
        "token_type_ids": [0] * len(a) + [1] * len(b) + padding,
        "attention_mask": [1] * (len(a) + len(b)) + padding,
        "next_sentence_label": pair.label,
    }
