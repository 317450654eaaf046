"""Batches of a split's rows: in training a function of the step, in evaluation every row once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from pruneonce.batch import Batch
from pruneonce.tasks.new_pairs import NewPairs, joined
from pruneonce.tasks.protocol import Kind
from pruneonce.tasks.splits import positions_after_cut

Row = Mapping[str, Any]


def collate(rows: Sequence[Row], kind: Kind, *, pad: int, max_tokens: int, last: int) -> Batch:
    """Return a batch: input_ids, attention_mask, token_type_ids of pairs, int64[batch, longest]; labels of the kind.

    A row of more than max_tokens is cut; its closing token `last` ([SEP]) remains.
    """
    positions = [positions_after_cut(row["input_ids"], max_tokens=max_tokens, last=last) for row in rows]
    longest = max(map(len, positions))

    def padded(name: str, filler: int) -> Tensor:
        cut = [[row[name][i] for i in chosen] for row, chosen in zip(rows, positions, strict=True)]
        return torch.tensor([[*values, *[filler] * (longest - len(values))] for values in cut])

    mask = torch.tensor([[1] * len(chosen) + [0] * (longest - len(chosen)) for chosen in positions])
    batch = {"input_ids": padded("input_ids", pad), "attention_mask": mask}
    if "token_type_ids" in rows[0]:
        batch["token_type_ids"] = padded("token_type_ids", 0)
    return batch | {"labels": kind.labels(rows, longest)}


def per_epoch(rows: int, batch_size: int) -> int:
    """Return the batches in one epoch."""
    return -(-rows // batch_size)


def steps(epochs: float, rows: int, batch_size: int) -> int:
    """Return the steps of `epochs`: 0 for 0, else at least 1."""
    return max(1, round(epochs * per_epoch(rows, batch_size))) if epochs else 0


class _Rows:
    """The columns of a split that a batch needs, read from the disk by row number."""

    def __init__(self, split: Dataset, kind: Kind):
        names = ("input_ids", "token_type_ids", *kind.targets)
        self.columns = split.select_columns([name for name in names if name in split.column_names])
        self.lengths = np.array([len(ids) for ids in split["input_ids"]])

    def __getitem__(self, index: np.ndarray) -> list[Row]:
        columns = self.columns[index.tolist()]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


class Batches:
    """Training batches as a pure function of the step.

    Texts of similar length share a batch, so there is little padding. Each epoch is a new shuffle: the rows are sorted by
    length within a window of `WINDOW` batches, then the batches are shuffled. Every row is in one batch of an epoch. One
    batch may be smaller.

    new_pairs: share of a batch's rows that get the second text of another row, of any length (`NewPairs`). A batch then has
    `labelled`, bool[batch], false for the new ones at its end: their `labels` say nothing.
    """

    WINDOW = 32

    def __init__(
        self,
        split: Dataset,
        kind: Kind,
        tokenizer,
        *,
        batch_size: int,
        max_tokens: int,
        seed: int,
        new_pairs: float = 0.0,
    ):
        self.split, self.kind = _Rows(split, kind), kind
        self.lengths = np.minimum(self.split.lengths, max_tokens)
        self.batch_size, self.seed = batch_size, seed
        self.max_tokens = int(self.lengths.max())  # a new pair is not longer than the rows
        self.pad, self.last = tokenizer.pad_token_id, tokenizer.sep_token_id
        self.new_pairs = NewPairs(split["input_ids"], share=new_pairs, seed=seed, last=self.last) if new_pairs else None
        self._plan = lru_cache(1)(self._shuffle)  # of the epoch that is read

    def __len__(self) -> int:
        """Return the batches in one epoch."""
        return per_epoch(len(self.lengths), self.batch_size)

    def steps(self, epochs: float) -> int:
        """Return the steps of `epochs`: 0 for 0, else at least 1."""
        return steps(epochs, len(self.lengths), self.batch_size)

    def rows(self, step: int) -> np.ndarray:
        """Return the row numbers of the batch of `step`."""
        epoch, position = divmod(step, len(self))
        return self._plan(epoch)[position]

    def _shuffle(self, epoch: int) -> list[np.ndarray]:
        draw, window = np.random.default_rng([self.seed, epoch]), self.WINDOW * self.batch_size
        order = draw.permutation(len(self.lengths))
        batches: list[np.ndarray] = []
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        return [batches[i] for i in draw.permutation(len(batches))]

    def __call__(self, step: int) -> Batch:
        if self.new_pairs is None:
            return self._collate(self.split[self.rows(step)])
        order, givers = self.new_pairs(step, self.rows(step))
        rows, labelled = self.split[order], len(order) - len(givers)
        new = [joined(*pair, self.last) for pair in zip(rows[labelled:], self.split[givers], strict=True)]
        return self._collate(rows[:labelled] + new) | {"labelled": torch.arange(len(order)) < labelled}

    def _collate(self, rows: Sequence[Row]) -> Batch:
        return collate(rows, self.kind, pad=self.pad, max_tokens=self.max_tokens, last=self.last)


def evaluation_batches(split: Dataset, kind: Kind, tokenizer, *, batch_size: int = 32) -> Iterator[Batch]:
    """Yield every row once, uncut, the shortest first for little padding. `row`: their numbers, int64[batch]."""
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


def in_split_order(answers: Iterable[tuple[Batch, np.ndarray]]) -> list[np.ndarray]:
    """Return the logits of every row in the split's order. answers: each of the `evaluation_batches` with its logits."""
    by_row = {int(row): logits for batch, many in answers for row, logits in zip(batch["row"], many, strict=True)}
    return [by_row[row] for row in range(len(by_row))]


def latency_batch(split: Dataset, tokenizer, *, tokens: int) -> Batch:
    """Return a batch of one row with exactly `tokens` tokens of real text, to measure a latency.

    All token types are 0: they do not change the time.
    """
    stream = [token for ids in split["input_ids"][:] for token in ids[1:-1]]
    stream = (stream * (tokens // max(1, len(stream)) + 1))[: tokens - 2]
    ids = torch.tensor([[tokenizer.cls_token_id, *stream, tokenizer.sep_token_id]])
    types = {"token_type_ids": torch.zeros_like(ids)} if "token_type_ids" in split.column_names else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **types}
