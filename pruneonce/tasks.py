"""A text classification task: rows in, splits that share no text, batches of similar length out."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from pruneonce.corpus import text_key
from pruneonce.errors import DataError
from pruneonce.training import Batch

SPLITS = ("train", "validation", "test")

Example = tuple[str, str]  # text, label


@dataclass
class Dropped:
    """What did not make it into a split, counted by reason."""

    empty: int = 0
    duplicate: int = 0
    held_out: int = 0  # stands in validation or test


def clean(
    rows: Iterable[Example], *, exclude: Iterable[Example] = (), keep_duplicates: bool = False
) -> tuple[list[Example], Dropped]:
    """Rows with a text and a label, each text once, none that stands in `exclude`; what was dropped, counted.

    keep_duplicates: for a given test split, whose rows are what published scores were measured on.
    """
    held_out = {text_key(text) for text, _ in exclude}
    seen: set[int] = set()
    kept, dropped = [], Dropped()
    for text, label in rows:
        key = text_key(text)
        if not text or not label:
            dropped.empty += 1
        elif key in held_out:
            dropped.held_out += 1
        elif key in seen and not keep_duplicates:
            dropped.duplicate += 1
        else:
            seen.add(key)
            kept.append((text, label))
    return kept, dropped


def carve(rows: Sequence[Example], ratio: float, *, seed: int) -> tuple[list[Example], list[Example]]:
    """Split `rows` in two, (rest, carved): of each label the share `ratio`, chosen by a hash of seed and text.

    Stratified to the nearest integer per label. Adding a row moves few others: membership hangs on the text alone.
    """
    by_label: dict[str, list[Example]] = {}
    for row in rows:
        by_label.setdefault(row[1], []).append(row)
    carved: set[Example] = set()
    for members in by_label.values():
        order = sorted(members, key=lambda row: hashlib.blake2b(f"{seed}\0{row[0]}".encode()).digest())
        carved.update(order[: round(ratio * len(members))])
    return [r for r in rows if r not in carved], [r for r in rows if r in carved]


def label_names(train: Sequence[Example], others: Sequence[Example], expected: Sequence[str] | None) -> list[str]:
    """The classes, sorted; `expected` if given must be all of them.

    Raises DataError for a label that training never shows, or that is not among the expected ones.
    """
    found = sorted({label for _, label in train})
    names = list(expected) if expected else found
    unknown = sorted({label for _, label in [*train, *others]} - set(names))
    if unknown:
        raise DataError(f"expected labels {names}, found also {unknown[:5]}. Fix the rows, or the task's `labels`.")
    if len(names) < 2:
        raise DataError(f"expected two classes or more, found {names}. Is this the label column?")
    return names


def write_split(path: Path, rows: Sequence[Example], names: Sequence[str], tokenizer, *, max_tokens: int) -> int:
    """Tokenise into an Arrow file: text, label (index into names), input_ids. Returns how many texts were cut."""
    schema = pa.schema({"text": pa.string(), "label": pa.int64(), "input_ids": pa.list_(pa.int32())})
    index, cut = {name: i for i, name in enumerate(names)}, 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as out:
        for start in range(0, len(rows), 1000):
            texts = [text for text, _ in rows[start : start + 1000]]
            labels = [index[label] for _, label in rows[start : start + 1000]]
            whole = tokenizer(texts, truncation=False, verbose=False)["input_ids"]
            cut += sum(len(i) > max_tokens for i in whole)
            ids = [i if len(i) <= max_tokens else [*i[: max_tokens - 1], i[-1]] for i in whole]
            out.write_batch(pa.record_batch({"text": texts, "label": labels, "input_ids": ids}, schema=schema))
    return cut


def read_split(path: Path) -> Dataset:
    """The split as a memory-mapped data set."""
    return Dataset.from_file(str(path))


def collate(rows: Sequence[Sequence[int]], labels: Sequence[int], *, pad: int, max_tokens: int, last: int) -> Batch:
    """One batch: input_ids and attention_mask int64[batch, longest], labels int64[batch].

    A row over max_tokens is cut and keeps its closing token `last` ([SEP]).
    """
    cut = [r if len(r) <= max_tokens else [*r[: max_tokens - 1], last] for r in rows]
    longest = max(map(len, cut))
    ids = torch.tensor([[*r, *[pad] * (longest - len(r))] for r in cut])
    mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in cut])
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(labels)}


class Batches:
    """Training batches as a pure function of the step; texts of similar length share a batch, so little is padding.

    Each epoch is a fresh shuffle; within a window of `WINDOW` batches rows are sorted by length, then the batches are
    shuffled. The last batch of an epoch may be smaller. Every row is seen once an epoch.
    """

    WINDOW = 32

    def __init__(self, split: Dataset, tokenizer, *, batch_size: int, max_tokens: int, seed: int):
        self.ids, self.labels = split["input_ids"][:], split["label"][:]
        self.lengths = np.array([min(len(i), max_tokens) for i in self.ids])
        self.batch_size, self.max_tokens, self.seed = batch_size, max_tokens, seed
        self.pad, self.last = tokenizer.pad_token_id, tokenizer.sep_token_id
        self._plan: tuple[int, list[np.ndarray]] = (-1, [])

    def __len__(self) -> int:
        """Batches in one epoch."""
        return -(-len(self.ids) // self.batch_size)

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
        order, window = draw.permutation(len(self.ids)), self.WINDOW * self.batch_size
        batches: list[np.ndarray] = []
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        return [batches[i] for i in draw.permutation(len(batches))]

    def __call__(self, step: int) -> Batch:
        rows = self.rows(step)
        return collate(
            [self.ids[i] for i in rows],
            [self.labels[i] for i in rows],
            pad=self.pad,
            max_tokens=self.max_tokens,
            last=self.last,
        )


def evaluation_batches(split: Dataset, tokenizer, *, batch_size: int = 32) -> Iterator[Batch]:
    """Every row once, shortest first, so that little is padding."""
    ids, labels = split["input_ids"][:], split["label"][:]
    order = np.argsort([len(i) for i in ids], kind="stable")
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        yield collate(
            [ids[i] for i in part],
            [labels[i] for i in part],
            pad=tokenizer.pad_token_id,
            max_tokens=len(ids[part[-1]]),
            last=tokenizer.sep_token_id,
        )


def one_text(split: Dataset, tokenizer, *, tokens: int) -> Batch:
    """A batch of one with exactly `tokens` tokens, real text end to end: what a latency is measured on."""
    stream = [token for ids in split["input_ids"][:] for token in ids[1:-1]]
    stream = (stream * (tokens // max(1, len(stream)) + 1))[: tokens - 2]
    row = [tokenizer.cls_token_id, *stream, tokenizer.sep_token_id]
    return collate([row], [0], pad=tokenizer.pad_token_id, max_tokens=tokens, last=tokenizer.sep_token_id)
