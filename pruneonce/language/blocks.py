"""Documents packed into blocks of tokens, and the Arrow files that hold them."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

BATCH_ROWS = 1024  # of a record batch in a file


def pack(
    documents: Iterable[np.ndarray], *, block_tokens: int, first: int, last: int, batch_blocks: int = BATCH_ROWS
) -> Iterator[np.ndarray]:
    """Join documents into blocks `[first] tokens... [last]` of exactly `block_tokens`, without padding.

    Each document ends with `last` ([SEP]) too, and may span blocks. The incomplete block at the end is dropped.
    Yields int32[batch_blocks, block_tokens]; the last batch may have fewer blocks.
    """
    room = block_tokens - 2
    end, pending, size = np.array([last], np.int32), list[np.ndarray](), 0
    for tokens in documents:
        pending += [tokens, end]
        size += len(tokens) + 1
        if size >= batch_blocks * room:
            joined = np.concatenate(pending)
            whole = size - size % (batch_blocks * room)
            for start in range(0, whole, batch_blocks * room):
                yield _framed(joined[start : start + batch_blocks * room].reshape(-1, room), first, last)
            pending, size = [joined[whole:]], size - whole
    if size >= room:
        yield _framed(np.concatenate(pending)[: size - size % room].reshape(-1, room), first, last)


def _framed(rows: np.ndarray, first: int, last: int) -> np.ndarray:
    return np.pad(rows, ((0, 0), (1, 1)), constant_values=((0, 0), (first, last))).astype(np.int32, copy=False)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema, *, batch_rows: int = BATCH_ROWS) -> int:
    """Stream rows, column -> value, into an Arrow file. Returns their number."""
    written, rows = 0, iter(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as out:
        while batch := list(islice(rows, batch_rows)):
            out.write_batch(pa.record_batch({name: [row[name] for row in batch] for name in schema.names}, schema=schema))
            written += len(batch)
    return written


def write_blocks(path: Path, batches: Iterable[np.ndarray], *, block_tokens: int) -> int:
    """Stream batches of blocks, int32[blocks, block_tokens], into an Arrow file with one column `tokens`.

    Returns the number of blocks.
    """
    written, schema = 0, pa.schema({"tokens": pa.list_(pa.int32(), block_tokens)})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as out:
        for batch in batches:
            tokens = pa.FixedSizeListArray.from_arrays(pa.array(batch.reshape(-1), pa.int32()), block_tokens)
            out.write_batch(pa.record_batch({"tokens": tokens}, schema=schema))
            written += len(batch)
    return written


class Writer(Protocol):
    """Write documents, each int32[tokens], into an Arrow file. Returns counts of what was written."""

    def __call__(
        self, path: Path, documents: Iterable[np.ndarray], tokenizer, *, block_tokens: int, max_tokens: int | None
    ) -> dict[str, int]: ...


def write_packed(
    path: Path, documents: Iterable[np.ndarray], tokenizer, *, block_tokens: int, max_tokens: int | None
) -> dict[str, int]:
    """Stream packed documents into an Arrow file of at most `max_tokens`, but at least one block."""
    most = None if max_tokens is None else max(1, max_tokens // block_tokens)
    batches = pack(
        documents,
        block_tokens=block_tokens,
        first=tokenizer.cls_token_id,
        last=tokenizer.sep_token_id,
        batch_blocks=min(BATCH_ROWS, most or BATCH_ROWS),
    )
    if most is not None:
        batches = _at_most(batches, most)
    written = write_blocks(path, batches, block_tokens=block_tokens)
    return {"blocks": written, "tokens": written * block_tokens}


def _at_most(batches: Iterable[np.ndarray], blocks: int) -> Iterator[np.ndarray]:
    for batch in batches:
        yield batch[:blocks]
        blocks -= len(batch)
        if blocks <= 0:
            return
