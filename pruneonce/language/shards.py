"""The documents of a corpus as tokens, in shards: a shard that is done is kept, and what is killed goes on after the last.

Documents are read once, in their order. A shard is a file with a row a document: what became of it, and its tokens.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from pruneonce.text import fingerprint, normalized

Keep = Callable[[str, Callable[[Path], object]], Path]  # name, write -> the file, which `write` makes unless it is there
TRAIN, HELD_OUT, EMPTY, IN_TEST, DUPLICATE = FATES = ("train", "held_out", "empty", "in_test", "duplicate")
SCHEMA = pa.schema({"fate": pa.int8(), "key": pa.uint64(), "tokens": pa.list_(pa.int32())})
BATCH_DOCUMENTS, BATCH_TOKENS = 4096, 250_000  # of a record batch: the first of both that is reached


class Shards:
    """Documents by part: `part(TRAIN)`, then `part(HELD_OUT)`. Memory holds one key a document, and no text.

    banned: keys of test texts. A document that equals one up to case and white space is dropped, and so is a repeated one.
    keep: gives the file of a shard. It is asked for shard 0, 1, ... in order; what is there already is not tokenised again.
    shard_characters: of text, about. A kill loses a shard; no byte of the tokens depends on it.
    """

    def __init__(
        self,
        documents: Iterable[str],
        tokenizer,
        keep: Keep,
        *,
        banned: Set[int],
        held_out_ratio: float,
        seed: int,
        shard_characters: int,
    ):
        self.tokenizer, self.keep, self.banned = tokenizer, keep, banned
        self.held_out_ratio, self.seed, self.shard_characters = held_out_ratio, seed, shard_characters
        self.fates = Counter[str]()  # of the documents in all shards so far
        self.shards: list[Path] = []
        self._seen = set[int]()
        self._documents = iter(documents)
        self._following = next(self._documents, None)
        self._taken = 0  # documents of the shard that is made

    def part(self, part: str) -> Iterator[np.ndarray]:
        """Yield the tokens of each document of a part, int32. A shard is made when its first document is asked for.

        The shards that are made for HELD_OUT have no tokens of TRAIN: nobody asked for so many.
        """
        for number in range(len(self.shards)):
            yield from _tokens(self.shards[number], part)
        while self._make({TRAIN, HELD_OUT} if part == TRAIN else {part}):
            yield from _tokens(self.shards[-1], part)

    def _make(self, wanted: Set[str]) -> bool:
        """Add a shard, or return False: there are no more documents. wanted: the parts whose texts are tokenised."""
        if self._following is None:
            return False
        self._taken = 0
        shard = self.keep(f"shard-{len(self.shards):06d}.arrow", lambda path: _write(path, self._rows(wanted)))
        rows = 0
        for batch in _batches(shard):
            self._seen.update(batch["key"].to_pylist())
            self.fates.update(FATES[fate] for fate in batch["fate"].to_pylist())
            rows += len(batch)
        for _ in range(rows - self._taken):  # the shard was there
            self._take()
        self.shards.append(shard)
        return True

    def _rows(self, wanted: Set[str]) -> Iterator[tuple[str, int, list[int]]]:
        """Yield fate, key and tokens of the documents of the next shard."""
        waiting = deque[tuple[str, int]]()

        def texts() -> Iterator[str]:
            for text in self._shard():
                waiting.append(self._fate(text))
                if waiting[-1][0] in wanted:
                    yield text

        for tokens in encode(texts(), self.tokenizer):
            while waiting[0][0] not in wanted:
                yield *waiting.popleft(), []
            yield *waiting.popleft(), tokens
        for fate, key in waiting:
            yield fate, key, []

    def _shard(self) -> Iterator[str]:
        """Yield the documents of the next shard. It ends with the one that brings it to `shard_characters`."""
        characters = 0
        while characters < self.shard_characters and self._following is not None:
            characters += len(self._following) + 1  # a line without text counts, too
            yield self._take()

    def _take(self) -> str:
        text, self._following = self._following, next(self._documents, None)
        self._taken += 1
        assert text is not None
        return text

    def _fate(self, text: str) -> tuple[str, int]:
        plain = normalized(text)
        key = fingerprint(plain, 0)
        dropped = EMPTY if not text else IN_TEST if key in self.banned else DUPLICATE if key in self._seen else None
        self._seen.add(key)
        if dropped:
            return dropped, key
        # seed + 1 is never 0: the key of duplicates, whose salt is 0, says nothing of the part
        return HELD_OUT if fingerprint(plain, self.seed + 1) < self.held_out_ratio * 2**64 else TRAIN, key


def _write(path: Path, rows: Iterable[tuple[str, int, list[int]]]) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as out:
        fates, keys, tokens, size = list[int](), list[int](), list[np.ndarray](), 0

        def flush() -> None:
            offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int32)
            lists = pa.ListArray.from_arrays(offsets, np.concatenate(tokens))
            out.write_batch(pa.record_batch([pa.array(fates, pa.int8()), pa.array(keys, pa.uint64()), lists], schema=SCHEMA))

        for fate, key, ids in rows:
            fates.append(FATES.index(fate))
            keys.append(key)
            tokens.append(np.array(ids, np.int32))
            size += len(ids)
            if size >= BATCH_TOKENS or len(keys) >= BATCH_DOCUMENTS:
                flush()
                fates, keys, tokens, size = [], [], [], 0
        if keys:
            flush()


def _batches(shard: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(shard)) as file:
        yield from pa.ipc.open_stream(file)


def _tokens(shard: Path, part: str) -> Iterator[np.ndarray]:
    """Yield the tokens of the documents of a part."""
    for batch in _batches(shard):
        ends, tokens = batch["tokens"].offsets.to_numpy(), batch["tokens"].values.to_numpy()
        for i in np.flatnonzero(batch["fate"].to_numpy() == FATES.index(part)).tolist():
            yield tokens[ends[i] : ends[i + 1]]


def encode(texts: Iterable[str], tokenizer, *, chunk_characters: int = 1_000_000) -> Iterator[list[int]]:
    """Yield the token ids of each text, without special tokens. The tokenizer works on all cores, one chunk ahead.

    chunk_characters: characters, about, that the tokenizer gets at a time; the memory in use depends on this alone.
    """
    ids, chunks = _encoder(tokenizer), _chunks(texts, chunk_characters)
    with ThreadPoolExecutor(1) as ahead:
        current = ahead.submit(ids, next(chunks, []))
        for chunk in chunks:
            following = ahead.submit(ids, chunk)
            yield from current.result()
            current = following
        yield from current.result()


def _chunks(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Yield the texts in order, in lists. A list ends with the text that brings it to `characters`."""
    chunk, size = list[str](), 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= characters:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _encoder(tokenizer) -> Callable[[list[str]], list[list[int]]]:
    """Return a function from texts to token ids, which cuts no text. A tokenizer in Rust is faster without offsets."""
    if not tokenizer.is_fast:
        return lambda texts: tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return lambda texts: [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
