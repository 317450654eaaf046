"""A task, of whatever kind: what a kind is, splits on the disk, batches of similar length."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from pruneonce.batch import Batch
from pruneonce.errors import ModelError
from pruneonce.examples import Example

# What every kind's splits have; a pair has two texts, and token types where the model reads them.
COLUMNS = {
    "text": pa.string(),
    "pair": pa.string(),
    "input_ids": pa.list_(pa.int32()),
    "token_type_ids": pa.list_(pa.int8()),
}


class Wanted(Protocol):
    """What a person says of a task."""

    @property
    def metric(self) -> str: ...
    @property
    def labels(self) -> list[str] | None: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def stride_tokens(self) -> int: ...
    @property
    def max_answer_tokens(self) -> int: ...
    @property
    def n_best(self) -> int: ...
    @property
    def null_threshold(self) -> float | None: ...


class Kind(Protocol):
    """All that differs between kinds of task: rows, targets, losses, decisions, scores.

    A kind is a frozen dataclass whose fields are what the later stages know of a task (`kinds.save`, `kinds.load`).
    Logits are one tensor, float[batch, ...]; two outputs (start and end) are stacked behind the batch axis.
    """

    @property
    def metric(self) -> str: ...

    architecture: ClassVar[Any]  # transformers' Auto class
    outputs: ClassVar[tuple[str, ...]]  # of the model, and of its ONNX file
    columns: ClassVar[dict[str, pa.DataType]]  # of a split, beside COLUMNS
    targets: ClassVar[tuple[str, ...]]  # those that `labels` reads

    @classmethod
    def example(cls, *cells: Any) -> Example:
        """A row out of the cells of its columns: text, the pair's second text if there is one, label."""
        ...

    @classmethod
    def shown(cls, row: Example) -> Iterable[str]:
        """The classes that a row shows; none if the kind has no classes."""
        ...

    @classmethod
    def of(cls, wanted: Wanted, train: Sequence[Example], *others: Sequence[Example]) -> Self:
        """The task as the rows of its splits show it. Raises DataError if they are not what was wanted."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """Fields of the model's configuration."""
        ...

    def encode(self, examples: Sequence[Example], tokenizer, *, max_tokens: int) -> tuple[dict[str, list], int]:
        """Columns of a split, and how many texts were cut."""
        ...

    def labels(self, rows: Sequence[Mapping[str, Any]], length: int) -> Tensor:
        """What the hard loss reads, for a batch of rows padded to `length`."""
        ...

    def hard(self, logits: Tensor, batch: Batch) -> Tensor:
        """Loss against the labels."""
        ...

    def soft(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        """Loss against the teacher's logits."""
        ...

    def decisions(self, logits: np.ndarray, batch: Batch) -> np.ndarray:
        """What is decided by the logits of a batch, one value a decision."""
        ...

    def scorers(self, split: Dataset, logits: Sequence[np.ndarray]) -> tuple[int, dict[str, Callable[[np.ndarray], float]]]:
        """(examples, metrics by name), out of the logits of every row of the split."""
        ...


def kept(ids: Sequence[int], *, max_tokens: int, last: int) -> list[int]:
    """Which tokens stay when a row is cut to max_tokens: the special ones, and of a pair more of the longer text goes.

    last: token that closes a text ([SEP]).
    """
    size = len(ids)
    if size <= max_tokens:
        return list(range(size))
    close = list(ids).index(last)
    if close == size - 1:
        return [*range(max_tokens - 1), size - 1]
    second = next((i for i in range(close, size) if ids[i] != last), size - 1)
    room = max_tokens - 2 - (second - close)
    one, two = close - 1, size - 1 - second
    short = min(one, two, room // 2)
    one, two = (short, room - short) if one <= two else (room - short, short)
    return [*range(1 + one), *range(close, second), *range(second, second + two), size - 1]


def encode_texts(examples: Sequence[Example], tokenizer, *, max_tokens: int) -> tuple[dict[str, list], int]:
    """Texts or pairs as token ids of at most max_tokens, and how many were cut."""
    texts = [list(column) for column in zip(*(row.texts for row in examples), strict=True)]
    whole = tokenizer(*texts, truncation=False, verbose=False)
    stay = [kept(ids, max_tokens=max_tokens, last=tokenizer.sep_token_id) for ids in whole["input_ids"]]
    columns = dict(zip(("text", "pair"), texts, strict=False))
    for name in ("input_ids", "token_type_ids") if len(texts) == 2 and "token_type_ids" in whole else ("input_ids",):
        columns[name] = [[row[i] for i in places] for row, places in zip(whole[name], stay, strict=True)]
    return columns, sum(len(ids) > max_tokens for ids in whole["input_ids"])


def check_offsets(tokenizer) -> None:
    """Raises ModelError for a tokenizer that does not say which word or characters a token comes from."""
    if not tokenizer.is_fast:
        raise ModelError(
            f"expected a tokenizer in Rust (tokenizer.json) for tags and answers, found {type(tokenizer).__name__}, which "
            "does not say where a token comes from. Classification and regression need none."
        )


def write_split(path: Path, rows: Sequence[Example], kind: Kind, tokenizer, *, max_tokens: int) -> int:
    """Tokenise into an Arrow file: text, the kind's columns, input_ids. Returns how many texts were cut."""
    out, cut = None, 0
    with pa.OSFile(str(path), "wb") as sink:
        for start in range(0, len(rows), 1000):
            columns, more = kind.encode(rows[start : start + 1000], tokenizer, max_tokens=max_tokens)
            cut += more
            types = {**COLUMNS, **kind.columns}
            schema = pa.schema({name: types[name] for name in columns})
            out = out or pa.ipc.new_stream(sink, schema)
            out.write_batch(pa.record_batch(columns, schema=schema))
        if out:
            out.close()
    return cut


def read_split(path: Path) -> Dataset:
    """The split as a memory-mapped data set."""
    return Dataset.from_file(str(path))


def texts_of_tests(folder: Path) -> Iterator[str]:
    """Every text of every test split of a task: of pairs both, of questions also the context."""
    for path in sorted(folder.glob("test*.arrow")):
        split = read_split(path)
        for column in ("text", "pair"):
            if column in split.column_names:
                yield from split[column]


Row = Mapping[str, Any]


def collate(rows: Sequence[Row], kind: Kind, *, pad: int, max_tokens: int, last: int) -> Batch:
    """One batch: input_ids, attention_mask and, of pairs, token_type_ids, int64[batch, longest]; labels of the kind.

    A row over max_tokens is cut and keeps its closing token `last` ([SEP]).
    """
    stay = [kept(row["input_ids"], max_tokens=max_tokens, last=last) for row in rows]
    longest = max(map(len, stay))

    def padded(name: str, filler: int) -> Tensor:
        cut = [[row[name][i] for i in places] for row, places in zip(rows, stay, strict=True)]
        return torch.tensor([[*values, *[filler] * (longest - len(values))] for values in cut])

    mask = torch.tensor([[1] * len(places) + [0] * (longest - len(places)) for places in stay])
    batch = {"input_ids": padded("input_ids", pad), "attention_mask": mask}
    if "token_type_ids" in rows[0]:
        batch["token_type_ids"] = padded("token_type_ids", 0)
    return batch | {"labels": kind.labels(rows, longest)}


class _Rows:
    """What batches are made of: rows by index, off the disk."""

    def __init__(self, split: Dataset, kind: Kind):
        wanted = ("input_ids", "token_type_ids", *kind.targets)
        self.columns = split.select_columns([name for name in wanted if name in split.column_names])
        self.lengths = np.array([len(ids) for ids in split["input_ids"]])

    def __getitem__(self, index: np.ndarray) -> list[Row]:
        found = self.columns[index.tolist()]
        return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


class Batches:
    """Training batches as a pure function of the step; texts of similar length share a batch, so little is padding.

    Each epoch is a fresh shuffle; within a window of `WINDOW` batches rows are sorted by length, then the batches are
    shuffled. The last batch of an epoch may be smaller. Every row is seen once an epoch.
    """

    WINDOW = 32

    def __init__(self, split: Dataset, kind: Kind, tokenizer, *, batch_size: int, max_tokens: int, seed: int):
        self.split, self.kind = _Rows(split, kind), kind
        self.lengths = np.minimum(self.split.lengths, max_tokens)
        self.batch_size, self.max_tokens, self.seed = batch_size, max_tokens, seed
        self.pad, self.last = tokenizer.pad_token_id, tokenizer.sep_token_id
        self._plan: tuple[int, list[np.ndarray]] = (-1, [])

    def __len__(self) -> int:
        """Batches in one epoch."""
        return -(-len(self.lengths) // self.batch_size)

    def steps(self, epochs: float) -> int:
        """Steps in so many epochs: none in none, else one at least."""
        return max(1, round(epochs * len(self))) if epochs else 0

    def rows(self, step: int) -> np.ndarray:
        """Which rows the batch of `step` takes."""
        epoch, position = divmod(step, len(self))
        if self._plan[0] != epoch:
            self._plan = (epoch, self._shuffle(np.random.default_rng([self.seed, epoch])))
        return self._plan[1][position]

    def _shuffle(self, draw: np.random.Generator) -> list[np.ndarray]:
        order, window = draw.permutation(len(self.lengths)), self.WINDOW * self.batch_size
        batches: list[np.ndarray] = []
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        return [batches[i] for i in draw.permutation(len(batches))]

    def __call__(self, step: int) -> Batch:
        rows = self.split[self.rows(step)]
        return collate(rows, self.kind, pad=self.pad, max_tokens=self.max_tokens, last=self.last)


def evaluation_batches(split: Dataset, kind: Kind, tokenizer, *, batch_size: int = 32) -> Iterator[Batch]:
    """Every row once, uncut, shortest first, so that little is padding; `row`, int64[batch], says which ones."""
    rows = _Rows(split, kind)
    order = np.argsort(rows.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        batch = collate(
            rows[part],
            kind,
            pad=tokenizer.pad_token_id,
            max_tokens=int(rows.lengths[part[-1]]),
            last=tokenizer.sep_token_id,
        )
        yield batch | {"row": torch.from_numpy(part)}


def in_order(answers: Iterable[tuple[Batch, np.ndarray]]) -> list[np.ndarray]:
    """The logits of every row, in the split's order, out of those of `evaluation_batches`."""
    found = {int(row): logits for batch, many in answers for row, logits in zip(batch["row"], many, strict=True)}
    return [found[row] for row in range(len(found))]


def one_text(split: Dataset, tokenizer, *, tokens: int) -> Batch:
    """A batch of one with exactly `tokens` tokens, real text end to end: what a latency is measured on.

    All token types are those of a first text: no time hangs on them.
    """
    stream = [token for ids in split["input_ids"][:] for token in ids[1:-1]]
    stream = (stream * (tokens // max(1, len(stream)) + 1))[: tokens - 2]
    ids = torch.tensor([[tokenizer.cls_token_id, *stream, tokenizer.sep_token_id]])
    types = {"token_type_ids": torch.zeros_like(ids)} if "token_type_ids" in split.column_names else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **types}
