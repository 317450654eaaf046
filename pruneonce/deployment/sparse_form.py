"""The sparse form of an int8 weight, which the kernels multiply: kernels/sparse.h describes it. Needs numpy alone."""

from dataclasses import dataclass

import numpy as np

BLOCK, CHUNK = 96, 32  # groups of inputs, and outputs: as in kernels/sparse.h


@dataclass(frozen=True)
class SparseForm:
    """The stored words of a weight, int8[outputs, inputs].

    words: int32[stored], four weights each. index: uint8[stored], the group of a word in its block.
    counts: uint8[blocks, outputs], the words of each output. rows: uint16[blocks, outputs], the order of the outputs.
    """

    words: np.ndarray
    index: np.ndarray
    counts: np.ndarray
    rows: np.ndarray

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.words, self.index, self.counts, self.rows))


def sparse_form(weight: np.ndarray) -> SparseForm:
    """The sparse form of int8[outputs, inputs]."""
    groups = _groups(weight)
    blocks = [_block(groups[:, at : at + BLOCK]) for at in range(0, groups.shape[1], BLOCK)]
    words, index, counts, rows = zip(*blocks, strict=True)
    return SparseForm(np.concatenate(words), np.concatenate(index), np.stack(counts), np.stack(rows))


def stored_share(weight: np.ndarray) -> float:
    """Share of the words, four consecutive inputs of an output, that are not all zero, of int8[outputs, inputs]."""
    groups = _groups(weight)
    return int(np.count_nonzero(groups)) / groups.size


def _groups(weight: np.ndarray) -> np.ndarray:
    """int32[outputs, ceil(inputs / 4)]: four consecutive inputs as one word; missing ones are zero."""
    outputs, inputs = weight.shape
    whole = np.zeros((outputs, -(-inputs // 4) * 4), np.int8)
    whole[:, :inputs] = weight
    return whole.view("<i4")


def _block(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    counts = np.count_nonzero(groups, axis=1)
    keys = np.full(-(-len(counts) // CHUNK) * CHUNK, -1)
    keys[: len(counts)] = counts
    order = np.argsort(-keys.reshape(-1, CHUNK), axis=1, kind="stable") + np.arange(0, len(keys), CHUNK)[:, None]
    rows = order.ravel()[: len(counts)]  # the last chunk's missing outputs come last
    ordered = groups[rows]
    stored = ordered != 0
    index = np.broadcast_to(np.arange(groups.shape[1], dtype=np.uint8), stored.shape)[stored]
    return ordered[stored], index, counts[rows].astype(np.uint8), rows.astype(np.uint16)
