"""Texts as the model reads them: the same token ids as in the splits that it was trained and measured on.

`tasks.splits` and the kinds of task make those by transformers; this module needs only its core, the package tokenizers.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

from pruneonce.errors import ModelError

QUESTION_ROOM = 4  # tokens that a question leaves free in half of a window, as in `tasks.answering`


@dataclass(frozen=True)
class Row:
    """What the model reads at a time, token by token. offsets: (begin, end) in characters of the text of number `parts`."""

    ids: list[int]
    types: list[int]
    offsets: list[tuple[int, int]]
    parts: list[int | None]

    def feeds(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The tensors that a graph with these inputs reads, int64[1, tokens]."""
        all_of = {"input_ids": self.ids, "attention_mask": [1] * len(self.ids), "token_type_ids": self.types}
        return {name: np.array([all_of[name]], np.int64) for name in names}


class Texts:
    """A tokenizer that cuts as the splits were cut. tokenizer: the text of tokenizer.json."""

    def __init__(self, tokenizer: str, *, max_tokens: int):
        self.max_tokens, self._of_stride = max_tokens, functools.cache(self._windows_tokenizer)
        with _one_error():
            self.whole = Tokenizer.from_str(tokenizer)
            self.cut = Tokenizer.from_str(tokenizer)
            for one in (self.whole, self.cut):
                one.no_padding()
                one.no_truncation()
            ids = self.whole.encode("a").ids
            self.first, self.last = ids[0], ids[-1]  # that begin and close a row
            # Of a pair the longer text is cut first, and special tokens remain, as in `tasks.splits`.
            self.cut.enable_truncation(max_tokens, strategy="longest_first")

    def row(self, text: str, pair: str | None = None) -> Row:
        """One row of a text or of a pair."""
        with _one_error():
            return self._row(self.cut.encode(text, pair))

    def windows(self, question: str, context: str, *, stride_tokens: int) -> Iterator[Row]:
        """The rows of a question: a window of the context each, which shares `stride_tokens` with the one before."""
        room = self.max_tokens // 2 - QUESTION_ROOM
        with _one_error():
            ends = [end for _, end in self.whole.encode(question, add_special_tokens=False).offsets]
            short = question if len(ends) <= room else question[: ends[room - 1]]
            encoding = self._of_stride(stride_tokens).encode(short, context)
        yield from map(self._row, (encoding, *encoding.overflowing))

    def _windows_tokenizer(self, stride_tokens: int) -> Tokenizer:
        """A tokenizer that cuts a context into windows. It takes some 20 ms to make, which is longer than many a call."""
        tokenizer = Tokenizer.from_str(self.whole.to_str())
        tokenizer.enable_truncation(self.max_tokens, stride=stride_tokens, strategy="only_second")
        return tokenizer

    def _row(self, encoding: Encoding) -> Row:
        """As `splits.token_ids`: a closing token inside a text is none."""
        parts = encoding.sequence_ids
        inside = zip(encoding.ids, parts, strict=True)
        ids = [self.first if token == self.last and part is not None else token for token, part in inside]
        return Row(ids, encoding.type_ids, encoding.offsets, parts)


@contextmanager
def _one_error() -> Iterator[None]:
    """Any error in the block is a ModelError: tokenizers raises no narrower one.

    A panic of its Rust code is no Exception.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"expected a tokenizer in the file's metadata, found: {error}. Export it again.") from None
