"""Blocks of tokens as batches for masked language modelling."""

from collections.abc import Iterator
from copy import copy
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from pruneonce.batch import IGNORED, Batch, mix


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

    def first(self, limit: int) -> Iterator[Batch]:
        """Return at most `limit` batches, each row at most once."""
        return map(self, range(min(limit, len(self))))

    def unmasked(self) -> "MaskedBlocks":
        """The same batches as plain text."""
        plain = copy(self)
        plain.probability = 0.0
        return plain

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
