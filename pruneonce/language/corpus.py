"""Text as blocks of tokens, and blocks as batches for masked language modelling."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor
from tqdm import tqdm

from pruneonce.batch import IGNORED, Batch, mix
from pruneonce.text import fingerprint, normalized, text_key


def pack(documents: Iterable[list[int]], *, block_tokens: int, first: int, last: int) -> Iterator[list[int]]:
    """Join documents into blocks `[first] tokens... [last]` of exactly `block_tokens`, without padding.

    Each document ends with `last` ([SEP]) too, and may span blocks. The incomplete block at the end is dropped.
    """
    room = block_tokens - 2
    pending: list[int] = []
    for tokens in documents:
        pending += [*tokens, last]
        while len(pending) >= room:
            yield [first, *pending[:room], last]
            del pending[:room]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema, *, batch_rows: int = 1024) -> int:
    """Stream rows, column -> value, into an Arrow file. Returns their number."""
    written, rows = 0, iter(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as out:
        while batch := list(islice(rows, batch_rows)):
            out.write_batch(pa.record_batch({name: [row[name] for row in batch] for name in schema.names}, schema=schema))
            written += len(batch)
    return written


def write_blocks(path: Path, blocks: Iterable[list[int]], *, block_tokens: int, batch_rows: int = 1024) -> int:
    """Stream blocks into an Arrow file with one column `tokens`, int32[block_tokens]. Returns their number."""
    schema = pa.schema({"tokens": pa.list_(pa.int32(), block_tokens)})
    return write_rows(path, ({"tokens": block} for block in blocks), schema, batch_rows=batch_rows)


class Writer(Protocol):
    """Write documents, each a list of token ids, into an Arrow file. Returns counts of what was written."""

    def __call__(
        self, path: Path, documents: Iterable[list[int]], tokenizer, *, block_tokens: int, max_tokens: int | None
    ) -> dict[str, int]: ...


def write_packed(
    path: Path, documents: Iterable[list[int]], tokenizer, *, block_tokens: int, max_tokens: int | None
) -> dict[str, int]:
    """Stream packed documents into an Arrow file of at most `max_tokens`, but at least one block."""
    blocks = pack(documents, block_tokens=block_tokens, first=tokenizer.cls_token_id, last=tokenizer.sep_token_id)
    most = None if max_tokens is None else max(1, max_tokens // block_tokens)
    written = write_blocks(path, islice(blocks, most), block_tokens=block_tokens)
    return {"blocks": written, "tokens": written * block_tokens}


def read_blocks(path: Path) -> Dataset:
    """Return the blocks as a memory-mapped data set: rows are read from the disk when they are used."""
    return Dataset.from_file(str(path)).with_format("numpy")


def mask_tokens(
    tokens: Tensor,
    *,
    probability: float,
    mask_token: int,
    vocabulary: int,
    special: list[int],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Mask tokens as BERT does: of the chosen positions, 80 % become [MASK], 10 % a random token, 10 % stay.

    tokens: int64[batch, length]. Return inputs and labels of that shape; labels are IGNORED at the other positions.
    Source: Devlin et al. 2019, arXiv:1810.04805, section 3.1.
    """
    draw = torch.rand(tokens.shape, generator=generator)
    chosen = (draw < probability) & ~torch.isin(tokens, torch.tensor(special))
    labels = tokens.masked_fill(~chosen, IGNORED)
    fate = torch.rand(tokens.shape, generator=generator)
    noise = torch.randint(vocabulary, tokens.shape, generator=generator)
    inputs = torch.where(chosen & (fate < 0.8), torch.full_like(tokens, mask_token), tokens)
    return torch.where(chosen & (fate >= 0.9), noise, inputs), labels


def write_corpus(
    documents: Callable[[], Iterable[str]],
    tokenizer,
    folder: Path,
    *,
    block_tokens: int,
    held_out_ratio: float,
    max_tokens: int | None,
    exclude: Iterable[str],
    seed: int,
    write: Writer = write_packed,
) -> dict[str, int]:
    """Tokenise documents into `train.arrow` and `held_out.arrow`. Returns counts of documents, blocks and tokens.

    documents: called once for each part, so that memory holds only one key a document.
    exclude: test texts. A document that equals one up to case and white space is dropped, and so is a repeated document.
    A document that differs by a word, or that contains a test text, stays.
    write: makes the rows of a part from its documents.
    The hash of a document decides its part, so equal documents are never in both.
    """
    banned = {text_key(text) for text in exclude}
    counts, sizes = dict[str, int](), dict[str, int]()
    for part, limit in (("train", max_tokens), ("held_out", None)):
        counts.update(dict.fromkeys(("documents", "empty", "duplicate", "in_test"), 0))
        listed = tqdm(documents(), desc=f"tokenise {part}", unit=" documents", mininterval=1.0)
        texts = _texts_of(part, listed, banned, counts, held_out_ratio=held_out_ratio, seed=seed)
        tokens = encode(texts, tokenizer)
        written = write(folder / f"{part}.arrow", tokens, tokenizer, block_tokens=block_tokens, max_tokens=limit)
        sizes |= {f"{part}_{name}": count for name, count in written.items()}
    return counts | sizes


def _texts_of(
    part: str, texts: Iterable[str], banned: Set[int], counts: dict[str, int], *, held_out_ratio: float, seed: int
) -> Iterator[str]:
    """Yield the texts of one part. Adds every text of both parts to `counts`."""
    seen: set[int] = set()
    for text in texts:
        plain = normalized(text)
        key = fingerprint(plain, 0)
        fate = "empty" if not text else "in_test" if key in banned else "duplicate" if key in seen else "documents"
        counts[fate] += 1
        seen.add(key)
        # seed + 1 is never 0: the key of duplicates, whose salt is 0, says nothing of the part
        held_out = fingerprint(plain, seed + 1) < held_out_ratio * 2**64
        if fate == "documents" and held_out == (part == "held_out"):
            yield text


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


class MaskedBlocks:
    """Batches for masked language modelling, a pure function of the step: `batches(step)`.

    A batch has input_ids, labels and attention_mask, int64[batch, length]. With segment pairs it also has token_type_ids,
    and next_sentence_label, int64[batch].
    """

    def __init__(self, blocks: Dataset, tokenizer, *, batch_size: int, probability: float, seed: int):
        self.blocks, self.batch_size, self.probability, self.seed = blocks, batch_size, probability, seed
        self.mask_token, self.vocabulary = tokenizer.mask_token_id, len(tokenizer)
        self.special = sorted(tokenizer.all_special_ids)
        self._order = lru_cache(1)(self._shuffle)  # of the epoch that is read: a corpus has millions of blocks

    def __call__(self, step: int) -> Batch:
        return self.masked(self.rows(step), mix(self.seed, step))

    def __len__(self) -> int:
        """Return the batches in one epoch."""
        return max(1, len(self.blocks) // self.batch_size)

    @property
    def columns(self) -> list[str]:
        """The columns of the blocks: `tokens`, and of segment pairs more."""
        return self.blocks.column_names

    def rows(self, step: int) -> np.ndarray:
        """Return the rows of the batch of `step`: a fresh shuffle each epoch, every row at most once an epoch."""
        epoch, position = divmod(step, len(self))
        return self._order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.blocks))

    def masked(self, rows: np.ndarray, seed: int) -> Batch:
        """Return the batch of these rows, masked by this seed."""
        columns = {k: torch.as_tensor(np.asarray(v), dtype=torch.int64) for k, v in self.blocks[rows].items()}
        inputs, labels = mask_tokens(
            columns.pop("tokens"),
            probability=self.probability,
            mask_token=self.mask_token,
            vocabulary=self.vocabulary,
            special=self.special,
            generator=torch.Generator().manual_seed(seed),
        )
        return {"input_ids": inputs, "labels": labels, "attention_mask": torch.ones_like(inputs)} | columns
