"""Pruning of a linear layer by second-order information, with an update of the weights that stay; pruned ones become 0.

For y = W x the squared error of a changed W is (dW) H (dW)^T with H = E[x x^T]. So the cost of a removed weight has a
closed form, and so has the change of the other weights that makes up for it best (optimal brain surgeon).
Source: Frantar & Alistarh 2023, arXiv:2301.00774 (SparseGPT), algorithm 1.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from pruneonce.batch import Batch
from pruneonce.sparsity.criterion import Calibration, Criterion, evaluating, share, watching
from pruneonce.sparsity.masks import MaskedLinear, masked_linears, pruned_count
from pruneonce.sparsity.patterns import UNSTRUCTURED, Pattern

BLOCK = 128  # columns among which a block's weights compete: the source's B_s


@torch.no_grad()
def input_moments(
    linears: Mapping[str, nn.Linear], read: Callable[[Batch], object], batches: Iterable[Batch]
) -> dict[str, Tensor]:
    """E[x x^T] of each linear's inputs while `read(batch)` runs the model on every batch: name -> float[in, in].

    Inputs at padding do not count: no loss reads the outputs there.
    """
    sums = {name: torch.zeros(m.in_features, m.in_features, device=m.weight.device) for name, m in linears.items()}
    rows = dict.fromkeys(linears, 0)

    def see(name: str, x: Tensor) -> None:
        x = rows_of_tokens(x.detach(), tokens)
        sums[name].addmm_(x.T, x)
        rows[name] += x.shape[0]

    with watching(linears, see):
        for batch in batches:
            tokens = batch["attention_mask"].bool()
            read(batch)
    return {name: total / max(1, rows[name]) for name, total in sums.items()}


def rows_of_tokens(x: Tensor, tokens: Tensor) -> Tensor:
    """float[rows, in] of x, a layer's input: its rows at `tokens`, bool[batch, length]; of a pooler, one of each text."""
    return (x[tokens] if x.shape[:-1] == tokens.shape else x.flatten(0, -2)).float()


@torch.no_grad()
def prune(
    model: nn.Module,
    linears: Mapping[str, MaskedLinear],
    calibration: Calibration,
    sparsity: float,
    *,
    pattern: Pattern = UNSTRUCTURED,
) -> None:
    """Prune every linear, in place, on the inputs it gets while the model reads the calibration's batches.

    Every process takes the result of the first.
    """
    with evaluating(model):
        moments = input_moments(linears, partial(calibration.read, model), calibration.pieces())
    for name, linear in linears.items():
        prune_second_order(linear, moments[name], sparsity, pattern=pattern)
    share(linears.values())


@torch.no_grad()
def prune_second_order(
    linear: MaskedLinear, moments: Tensor, sparsity: float, *, pattern: Pattern = UNSTRUCTURED, damping: float = 0.01
) -> None:
    """Prune exactly `pruned_count` units of `linear`, in place, and update the weights that stay.

    moments: float[in, in], E[x x^T] of the layer's inputs; damping: fraction of its mean diagonal that is added to it.
    The cost of a unit is the sum of w^2 / [H^-1]_jj over its weights. Units of the same BLOCK columns compete; their weights
    are updated by the columns before them. Blocks share the count evenly; the first ones take the remainder. N:M: each
    group is a block.
    """
    weight = linear.effective_weight.detach().float().T.clone()  # [in, out]: a column of W is a row here, and contiguous
    columns, width = len(weight), pattern.group or BLOCK
    hessian = moments.clone()
    hessian.diagonal().add_(damping * hessian.diagonal().mean() + 1e-8)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    mask = torch.ones_like(weight, dtype=torch.bool)
    total, done = pruned_count(sparsity, pattern.rivals(weight.numel())), 0

    for start in range(0, columns, width):
        end = min(start + width, columns)
        count = total if pattern.group else round(total * end / columns) - done
        done += count
        block, diagonal = weight[start:end], inverse.diagonal()[start:end, None]
        dropped = pattern.smallest((block / diagonal).square().T, count).T
        mask[start:end] = ~dropped
        errors = torch.zeros_like(block)
        for j in range(end - start):
            errors[j] = block[j] * dropped[j] / diagonal[j]
            block[j:].addr_(inverse[start + j, start + j : end], errors[j], alpha=-1.0)
        block[dropped] = 0.0
        weight[end:] -= inverse[start:end, end:].T @ errors

    linear.weight.copy_(weight.T)
    linear.mask.copy_(mask.T)


class SecondOrder(Criterion):
    """The weights that cost the layer's output least go; the others are updated to make up for them."""

    def prune(self, model: nn.Module, sparsity: float) -> None:
        prune(model, masked_linears(model), self.calibration, sparsity, pattern=self.placement.pattern)
