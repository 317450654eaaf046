"""The sparse form of an int8 weight, which the kernels multiply: kernels/sparse.h describes it. Needs numpy alone."""

from dataclasses import dataclass

import numpy as np

BLOCK, CHUNK = 96, 32  # groups of inputs, and outputs: as in kernels/sparse.h
MOST_INPUTS, MOST_OUTPUTS = 1 << 14, (1 << 16) - 1  # of a weight that has a sparse form


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
    return _form(_groups(weight)[..., None])


def narrow_form(weight: np.ndarray) -> SparseForm:
    """A sparse form that the AVX2 path multiplies three times as fast: no pair of a word's weights overflows 16 bits there.

    A word with |w0| + |w1| > 128 or |w2| + |w3| > 128 is stored as two: one has w0 and w2, the other w1 and w3.
    """
    words = _groups(weight)
    pairs = np.abs(words[..., None].view(np.int8).astype(np.int16)).reshape(*words.shape, 2, 2).sum(-1)
    wide = (pairs > 128).any(-1)
    even = np.array([0x00FF00FF], "<u4").view("<i4")[0]
    return _form(np.stack([np.where(wide, words & even, words), np.where(wide, words & ~even, 0)], axis=-1))


def _form(words: np.ndarray) -> SparseForm:
    """int32[outputs, groups, words of a group], of which those that are not zero are stored."""
    blocks = [_block(words[:, at : at + BLOCK]) for at in range(0, words.shape[1], BLOCK)]
    stored, index, counts, rows = zip(*blocks, strict=True)
    return SparseForm(np.concatenate(stored), np.concatenate(index), np.stack(counts), np.stack(rows))


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


def _block(words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    counts = np.count_nonzero(words, axis=(1, 2))
    keys = np.full(-(-len(counts) // CHUNK) * CHUNK, -1)
    keys[: len(counts)] = counts
    order = np.argsort(-keys.reshape(-1, CHUNK), axis=1, kind="stable") + np.arange(0, len(keys), CHUNK)[:, None]
    rows = order.ravel()[: len(counts)]  # the last chunk's missing outputs come last
    ordered = words[rows]
    stored = ordered != 0
    index = np.broadcast_to(np.arange(words.shape[1], dtype=np.uint8)[:, None], stored.shape)[stored]
    return ordered[stored], index, counts[rows].astype(np.uint8), rows.astype(np.uint16)
