"""Masks: which linears are prunable, the masked linear, pruning, pattern lock, and how sparsity is counted.

A mask is a bool buffer of the shape of its weight; False means pruned. The weight in use is weight * mask. A pruned
entry gets a gradient of 0: only the optimizer's momentum and decay still move it. It may return at the next `prune`, never
after `lock`.
A saved model holds no masks: `bake` writes the zeros into the weights, `lock` reads them back.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruneonce.errors import ModelError, PatternBroken


class MaskedLinear(nn.Linear):
    """y = x (W * M)^T + b, sharing W and b with the linear it replaces."""

    mask: Tensor

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("mask", torch.ones_like(linear.weight, dtype=torch.bool), persistent=False)

    @property
    def effective_weight(self) -> Tensor:
        """float[out, in]: the weight as it is used, pruned entries exactly 0."""
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective_weight, self.bias)


Layers = str | Collection[str] | None  # which linears: a regular expression, their names, or None: by structure


def prunable(model: nn.Module, layers: Layers) -> dict[str, nn.Linear]:
    """The prunable linears of the language model's body, by their name in the body.

    layers: None selects those in the body's repeated layers and in its pooler, for every architecture. A regular
    expression selects those whose name it matches. Names select exactly those, as of a model that was pruned.
    Names are relative to the body (`model.base_model` in transformers), so they do not depend on the head:
    `encoder.layer.0.attention.self.query`. Heads are not in the body and are never pruned. A linear that several layers
    share is one linear.
    Raises ModelError if nothing matches, or a name is missing.
    Source: Zafrir et al. 2021, arXiv:2111.05754, "student pruning": every Linear of the encoder, and the pooler.
    """
    linears = {name: m for name, m in body(model).named_modules() if isinstance(m, nn.Linear)}
    if layers is None:
        names, place = _in_layers(body(model)), "inside its layers"
    elif isinstance(layers, str):
        names, place = [name for name in linears if re.search(layers, name)], f"whose name matches {layers!r}"
    else:
        names, place = list(layers), f"of the names {', '.join(sorted(set(layers) - set(linears))[:4])}"
    if not names or not set(names) <= set(linears):
        raise ModelError(
            f"expected nn.Linear layers {place}, found none in {type(model).__name__}; "
            f"its linears are: {', '.join(list(linears)[:12]) or 'none'}. Change `sparsify.prunable` in params.yaml and "
            "prune again."
        )
    return {name: linears[name] for name in names}


def _in_layers(inside: nn.Module) -> list[str]:
    """Names of the linears in a body's lists of layers, and in its pooler.

    Other linears lead from the embeddings to the layers: ELECTRA's and ALBERT's projections.
    """
    inside_lists = tuple(f"{name}." for name, m in inside.named_modules() if isinstance(m, nn.ModuleList))
    linears = (name for name, m in inside.named_modules() if isinstance(m, nn.Linear))
    return [name for name in linears if name.startswith(inside_lists) or name.split(".")[0] == "pooler"]


def body(model: nn.Module) -> nn.Module:
    """The model without its head: `base_model` of a transformers model, else the model itself."""
    return getattr(model, "base_model", model)


def mask_linears(
    model: nn.Module, layers: Layers, masked_linear: Callable[[nn.Linear], MaskedLinear] = MaskedLinear
) -> dict[str, MaskedLinear]:
    """Replace, in place, every prunable linear by a masked one that prunes nothing yet. Returns them by name."""
    masked = {name: masked_linear(linear) for name, linear in prunable(model, layers).items()}
    replace(model, masked)
    return masked


def replace(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Put other modules in the body, in place, for those of these names. One that several layers share goes from all."""
    inside = body(model)
    new = {inside.get_submodule(name): module for name, module in modules.items()}
    for path, old in list(inside.named_modules(remove_duplicate=False)):
        if old in new:
            inside.set_submodule(path, new[old])


def masked_linears(model: nn.Module) -> dict[str, MaskedLinear]:
    """Every masked linear by its name in the model's body, in definition order."""
    return {name: m for name, m in body(model).named_modules() if isinstance(m, MaskedLinear)}


def pruned_count(sparsity: float, numel: int) -> int:
    """Number of `numel` weights (or blocks) that go at `sparsity`: the nearest integer, halves to even.

    No other place rounds. Raises ValueError unless sparsity is in [0, 1].
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be in [0, 1], got {sparsity}")
    return round(sparsity * numel)


def smallest(score: Tensor, count: int) -> Tensor:
    """bool, shape of `score`: True at exactly the `count` smallest of every row (last dimension); ties: the lower index.

    kthvalue selects in O(numel), where a sort would not. `|w| > threshold` would prune every tie of the threshold.
    """
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = score.kthvalue(count, dim=-1, keepdim=True).values
    below, tied = score < threshold, score == threshold
    return below | (tied & (tied.cumsum(-1) <= count - below.sum(-1, keepdim=True)))


Score = Callable[[MaskedLinear], Tensor]  # float[out, in]: the weights of lowest score go
Select = Callable[[Iterable[Tensor], float], Iterable[Tensor]]  # scores of all matrices, sparsity -> their masks


def magnitude(linear: MaskedLinear) -> Tensor:
    """float[out, in]: |W|, the paper's criterion."""
    return linear.weight.detach().float().abs()


def uniform(scores: Iterable[Tensor], sparsity: float) -> Iterator[Tensor]:
    """The paper's selection: each matrix loses exactly `pruned_count` weights, those of lowest score."""
    return (~smallest(s.flatten(), pruned_count(sparsity, s.numel())).view_as(s) for s in scores)


def magnitude_mask(weight: Tensor, sparsity: float) -> Tensor:
    """bool, shape of `weight`: False at exactly `pruned_count` entries, those of smallest |weight|."""
    return next(uniform([weight.detach().float().abs()], sparsity))


@torch.no_grad()
def prune(model: nn.Module, sparsity: float, *, score: Score = magnitude, select: Select = uniform) -> None:
    """Recompute the masks of every masked linear: the weights of highest score stay. Pruned weights may come back.

    score, select: by default the paper's: magnitude, and one sparsity for every matrix.
    """
    linears = list(masked_linears(model).values())
    for linear, mask in zip(linears, select(map(score, linears), sparsity), strict=True):
        linear.mask.copy_(mask)


def masked_sparsity(model: nn.Module) -> float:
    """Fraction of the masked linears' weights that the masks prune, in [0, 1]."""
    masks = [linear.mask for linear in masked_linears(model).values()]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def lock(model: nn.Module) -> dict[str, Tensor]:
    """Pattern lock: M = [W != 0]. A weight that is zero now stays zero under every optimizer.

    Returns the pattern: name -> bool[out, in], True where the weight is zero.
    Source: Zafrir et al. 2021, arXiv:2111.05754, "pattern-lock".
    """
    linears = masked_linears(model)
    for linear in linears.values():
        linear.mask.copy_(linear.weight != 0)
    return {name: ~linear.mask for name, linear in linears.items()}


@torch.no_grad()
def bake(model: nn.Module) -> dict[str, Tensor]:
    """Write the masks into the weights (a pruned weight becomes 0.0) and put plain linears back.

    Returns the pattern: name -> bool[out, in], True where the weight is zero.
    """
    pattern, baked = {}, {}
    for name, linear in masked_linears(model).items():
        linear.weight.masked_fill_(~linear.mask, 0.0)  # a product would leave -0.0, whose sign bits do not compress
        plain = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        plain.weight, plain.bias = linear.weight, linear.bias
        baked[name] = plain
        pattern[name] = linear.weight.detach() == 0
    replace(model, baked)
    return pattern


def zeros(model: nn.Module, layers: Layers) -> dict[str, Tensor]:
    """The sparsity pattern of a baked model: name -> bool[out, in], True where the weight is exactly zero."""
    return {name: linear.weight.detach() == 0 for name, linear in prunable(model, layers).items()}


def check_pattern(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Raises PatternBroken, naming each matrix, if a weight that was zero before is not zero after."""
    lost = {name: int((zero & ~after[name]).sum()) if name in after else "missing" for name, zero in before.items()}
    broken = {name: count for name, count in lost.items() if count}
    if broken:
        raise PatternBroken(
            f"expected every pruned weight to stay zero, found zeros lost in {len(broken)} of {len(before)} matrices: "
            f"{dict(list(broken.items())[:5])}. Start from the sparse model again: it was changed outside of the lock."
        )


def check_sparsity(pattern: Mapping[str, Tensor], sparsity: float, select: Select = uniform) -> None:
    """Raises PatternBroken, naming each matrix, unless the pattern has the zeros that `select` places at this sparsity.

    pattern: name -> bool[out, in], True where the weight is zero. More zeros are no error.
    `select` gets the score 0 for every zero and 1 for every non-zero. So every non-zero that it prunes is a missing zero.
    """
    masks = select(((~zero).float() for zero in pattern.values()), sparsity)
    short = {name: int((~zero & ~mask).sum()) for (name, zero), mask in zip(pattern.items(), masks, strict=True)}
    missing = {name: count for name, count in short.items() if count}
    if missing:
        raise PatternBroken(
            f"expected sparsity {sparsity} in its pattern, found zeros missing in {len(missing)} of {len(short)} matrices: "
            f"{dict(list(missing.items())[:5])}. Prune again: the masks were moved after the last pruning step."
        )


def sparsity(pattern: Mapping[str, Tensor]) -> float:
    """Fraction of the prunable weights that are exactly zero, in [0, 1]."""
    return sum(int(z.sum()) for z in pattern.values()) / sum(z.numel() for z in pattern.values())
