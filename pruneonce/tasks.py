"""A task, of whatever kind: rows in, splits that share no text, batches of similar length out."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from pruneonce.corpus import text_key
from pruneonce.errors import DataError
from pruneonce.training import Batch

SPLITS = ("train", "validation", "test")

# What every kind's splits have; a pair has two texts, and token types where the model reads them.
COLUMNS = {
    "text": pa.string(),
    "pair": pa.string(),
    "input_ids": pa.list_(pa.int32()),
    "token_type_ids": pa.list_(pa.int8()),
}


@dataclass(frozen=True)
class Example:
    """One row of a task. label: what its kind makes of the label's cell, hashable; None where there is none."""

    texts: tuple[str, ...]  # one, or the two of a pair (question and context)
    label: Any
    stratum: str = ""  # a split is carved with the same share of each
    group: str | None = None  # a split is carved with all or none of it; None: every row by itself


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
    Logits are one tensor of a row each, float[batch, ...]; two outputs (start and end) are stacked behind the batch.
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

    def scorers(self, split: Dataset, logits: Sequence[np.ndarray]) -> tuple[int, dict[str, Any]]:
        """(examples, metrics by name as `scores.Scorer`), out of the logits of every row of the split."""
        ...


@dataclass
class Dropped:
    """What did not make it into a split, counted by reason."""

    empty: int = 0
    duplicate: int = 0
    held_out: int = 0  # stands in validation or test


def key(example: Example) -> tuple[int, ...]:
    """Equal for rows whose texts are all equal, up to case and white space."""
    return tuple(map(text_key, example.texts))


def clean(
    rows: Iterable[Example], *, exclude: Iterable[Example] = (), keep_duplicates: bool = False
) -> tuple[list[Example], Dropped]:
    """Rows with all texts and a label, each once, none that stands in `exclude`; what was dropped, counted.

    A pair is equal to another if both of its texts are: a context may have questions in several splits.
    keep_duplicates: for a given test split, whose rows are what published scores were measured on.
    """
    held_out = {key(row) for row in exclude}
    seen: set[tuple[int, ...]] = set()
    kept, dropped = [], Dropped()
    for row in rows:
        own = key(row)
        if not all(row.texts) or row.label is None:
            dropped.empty += 1
        elif own in held_out:
            dropped.held_out += 1
        elif own in seen and not keep_duplicates:
            dropped.duplicate += 1
        else:
            seen.add(own)
            kept.append(row)
    return kept, dropped


def carve(rows: Sequence[Example], ratio: float, *, seed: int) -> tuple[list[Example], list[Example]]:
    """Split `rows` in two, (rest, carved): of each stratum the share `ratio` of its groups, by a hash of seed and text.

    Stratified to the nearest integer. Adding a row moves few others: membership hangs on the text alone.
    """
    strata: dict[str, dict[str, None]] = {}
    for row in rows:
        strata.setdefault(row.stratum, {})[_group(row)] = None
    carved: set[tuple[str, str]] = set()
    for stratum, groups in strata.items():
        order = sorted(groups, key=lambda group: hashlib.blake2b(f"{seed}\0{group}".encode()).digest())
        carved.update((stratum, group) for group in order[: round(ratio * len(groups))])
    sides: tuple[list[Example], list[Example]] = ([], [])
    for row in rows:
        sides[(row.stratum, _group(row)) in carved].append(row)
    return sides


def _group(row: Example) -> str:
    return "\0".join(row.texts) if row.group is None else row.group


def make_splits(
    given: Mapping[str, Sequence[Example] | None], *, validation_ratio: float, test_ratio: float, seed: int
) -> tuple[dict[str, list[Example]], dict[str, Dropped]]:
    """train, validation, test and further tests (any other name), and what was dropped of each.

    given: by name; None for a split that the source lacks, which is carved from train, a ratio of all of its rows.
    Given tests are kept whole but for empty rows: what they share with train and validation leaves these, never them.
    Raises DataError for a split without rows.
    """
    names = ["test", *(name for name in given if name not in SPLITS)]
    tests = {name: clean(given[name] or [], keep_duplicates=True) for name in names}
    held_out = [row for kept, _ in tests.values() for row in kept]
    validation, dropped_validation = clean(given["validation"] or [], exclude=held_out)
    train, dropped_train = clean(given["train"] or [], exclude=[*held_out, *validation])
    dropped = {"train": dropped_train, "validation": dropped_validation, **{n: d for n, (_, d) in tests.items()}}
    found, total = {name: kept for name, (kept, _) in tests.items()}, len(train)
    if given["test"] is None:
        train, found["test"] = carve(train, test_ratio, seed=seed)
    if given["validation"] is None:
        train, validation = carve(train, validation_ratio * total / max(1, len(train)), seed=seed)
    found = {"train": train, "validation": validation, **found}
    empty = [name for name, rows in found.items() if not rows]
    if empty:
        raise DataError(f"expected rows in every split, found none in {', '.join(empty)}. Dropped: {dropped}.")
    return found, dropped


def shared_second_texts(train: Iterable[Example], *others: Iterable[Example]) -> int:
    """How many second texts of pairs (contexts, say) stand in train and in another split, up to case and white space."""
    one, other = ({text_key(text) for row in rows for text in row.texts[1:]} for rows in (train, chain(*others)))
    return len(one & other)


def label_names(train: Iterable[str], others: Iterable[str], expected: Sequence[str] | None) -> list[str]:
    """The classes, sorted; `expected` if given must be all of them, and gives their order.

    Raises DataError for a label that training never shows, or that is not among the expected ones.
    """
    found = sorted({*train})
    names = list(expected) if expected else found
    unknown = sorted({*found, *others} - set(names))
    if unknown:
        raise DataError(f"expected labels {names}, found also {unknown[:5]}. Fix the rows, or the task's `labels`.")
    if len(names) < 2:
        raise DataError(f"expected two classes or more, found {names}. Is this the label column?")
    return names


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
    """What batches are made of, in memory: rows by index."""

    def __init__(self, split: Dataset, kind: Kind):
        wanted = ("input_ids", "token_type_ids", *kind.targets)
        self.columns = {name: split[name][:] for name in wanted if name in split.column_names}
        self.lengths = np.array([len(ids) for ids in self.columns["input_ids"]])

    def __getitem__(self, index: np.ndarray) -> list[Row]:
        return [{name: column[i] for name, column in self.columns.items()} for i in index]


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
        """Steps in so many epochs, one at least."""
        return max(1, round(epochs * len(self)))

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
