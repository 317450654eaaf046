"""Where zeros may lie in a weight, float[out, in], and with which other weights each one competes to stay.

    unstructured   anywhere
    1x4            4 consecutive inputs of one output go or stay together
    4x1            4 consecutive outputs of one input do
    2:4, 4:8       of every 4 (8) consecutive inputs of one output 2 (4) stay; sparse tensor cores multiply 2:4

Weights that go or stay together are a unit. Its score is the sum of its weights' scores. Units compete in their matrix
(uniform) or over all matrices (global). Of n units exactly `pruned_count(sparsity, n)` go, those of lowest score.
N:M: every weight is a unit and competes in its group of M, so sparsity 1 - N/M is N:M. A ramp to it passes through M-1:M,
M-2:M, ... ("sparse structure decay", Kao et al. 2022, arXiv:2209.07617). Without a ramp it is the one-shot N:M of Mishra et
al. 2021, arXiv:2104.08378. Blocks of 4: Kurtic et al. 2022, arXiv:2203.07259.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruneonce.errors import ModelError
from pruneonce.sparsity.masks import Select, pruned_count, smallest


@dataclass(frozen=True)
class Pattern:
    """Units of `rows` outputs x `columns` inputs, which compete in their matrix or in groups along the input."""

    rows: int = 1
    columns: int = 1
    group: int | None = None  # M of N:M; None: the whole matrix

    def pool(self, values: Tensor) -> Tensor:
        """float[out / rows, in / columns]: the sum over each unit."""
        out, width = values.shape
        return values.float().reshape(out // self.rows, self.rows, width // self.columns, self.columns).sum((1, 3))

    def spread(self, units: Tensor) -> Tensor:
        """[out, in] of [out / rows, in / columns]: every weight gets the value of its unit."""
        return units.repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)

    def rivals(self, numel: int) -> int:
        """Number of units that compete with one another in a matrix of `numel` weights."""
        return self.group or numel // (self.rows * self.columns)

    def smallest(self, score: Tensor, count: int) -> Tensor:
        """bool[out, in], True at the `count` units of lowest score, of each group if there are groups. Ties: lower index."""
        units = self.pool(score)
        return self.spread(smallest(units.reshape(-1, self.rivals(score.numel())), count).view_as(units))

    def mask(self, score: Tensor, sparsity: float) -> Tensor:
        """bool[out, in], False at exactly `pruned_count` units, those of lowest score."""
        return ~self.smallest(score, pruned_count(sparsity, self.rivals(score.numel())))


UNSTRUCTURED = Pattern()
PATTERNS = {
    "unstructured": UNSTRUCTURED,
    "1x4": Pattern(columns=4),
    "4x1": Pattern(rows=4),
    "2:4": Pattern(group=4),
    "4:8": Pattern(group=8),
}


def fitting(name: str, linears: Mapping[str, nn.Linear]) -> Pattern:
    """The pattern of that name. Raises ModelError, naming the matrices, if one cannot be divided into units and groups."""
    pattern = PATTERNS[name]
    rows, columns = pattern.rows, pattern.columns * (pattern.group or 1)
    bad = {k: list(m.weight.shape) for k, m in linears.items() if m.weight.shape[0] % rows or m.weight.shape[1] % columns}
    if bad:
        raise ModelError(
            f"expected outputs a multiple of {rows} and inputs a multiple of {columns} for pattern {name}, found weights "
            f"[out, in] {dict(list(bad.items())[:5])}. Choose another pattern, or leave them out of sparsify.prunable."
        )
    return pattern


def uniform(pattern: Pattern) -> Select:
    """Every matrix gets the same sparsity: its units compete among themselves."""
    return lambda scores, sparsity: (pattern.mask(score, sparsity) for score in scores)


def over_model(pattern: Pattern) -> Select:
    """All matrices together get the sparsity: their units compete with one another, and a matrix may lose all or none.

    Scores must be comparable between matrices. Not for N:M, where every group has its own count.
    """

    def select(scores: Iterable[Tensor], sparsity: float) -> Iterator[Tensor]:
        units = [pattern.pool(score) for score in scores]
        together = torch.cat([u.flatten() for u in units])
        masks = ~smallest(together, pruned_count(sparsity, together.numel()))
        parts = masks.split([u.numel() for u in units])
        return (pattern.spread(part.view_as(u)) for u, part in zip(units, parts, strict=True))

    return select


SCOPES = {"uniform": uniform, "global": over_model}


@dataclass(frozen=True)
class Placement:
    """Where zeros may lie, and which weights compete to stay."""

    pattern: Pattern
    select: Select


def placement(pattern: str, scope: str, linears: Mapping[str, nn.Linear]) -> Placement:
    """The placement by its names in PATTERNS and SCOPES.

    Raises ModelError, naming the matrices, if a linear cannot be divided into the pattern's units and groups.
    """
    fit = fitting(pattern, linears)
    return Placement(fit, SCOPES[scope](fit))
