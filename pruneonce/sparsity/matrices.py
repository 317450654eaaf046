"""The matrices of a model: shape, place, and whether they are prunable."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate
from torch import Tensor, nn

from pruneonce.sparsity.masks import Layers, body, prunable


@dataclass(frozen=True)
class Matrices:
    """Matrices of one shape and place, one in each of `count` layers."""

    name: str  # in the body, or of a head; `*` stands for the number of a layer
    shape: tuple[int, ...]
    count: int
    weights: int  # stored: 0 where the matrix shares the weights of another one
    prunable: str  # "yes", or "no" and why


def matrices(model: nn.Module, layers: Layers) -> list[Matrices]:
    """Every matrix of the model, in definition order. Equal ones of all layers are one entry."""
    selected = {id(linear) for linear in prunable(model, layers).values()}
    inside = {id(m): name for name, m in body(model).named_modules()}
    counts: Counter[tuple[str, tuple[int, ...], str]] = Counter()
    stored = set[int]()

    def verdict(module: nn.Module) -> str:
        if id(module) in selected:
            return "yes"
        if id(module.weight) in stored:
            return "no: the embeddings again"
        if id(module) not in inside:
            return "no: head"
        if isinstance(module, nn.Embedding):
            return "no: embeddings"
        return "no: not in a layer" if layers is None else "no: not selected"

    for name, module in model.named_modules():
        if isinstance(weight := getattr(module, "weight", None), Tensor) and weight.ndim >= 2:
            place = re.sub(r"(?<=\.)\d+(?=\.)", "*", inside.get(id(module), name))
            counts[place, tuple(weight.shape), verdict(module)] += 1
            stored.add(id(weight))
    return [
        Matrices(name, shape, count, 0 if why.endswith("again") else count * math.prod(shape), why)
        for (name, shape, why), count in counts.items()
    ]


def table(entries: Sequence[Matrices]) -> str:
    """The entries as text, a line each, and two lines of sums: of all and of the prunable ones."""
    rows: list[tuple[object, ...]] = [("matrix", "shape", "count", "weights", "prunable")]
    rows += [(m.name, " x ".join(map(str, m.shape)), m.count, f"{m.weights:,}", m.prunable) for m in entries]
    for name, part in (("all", entries), ("prunable", [m for m in entries if m.prunable == "yes"])):
        rows.append((name, "", sum(m.count for m in part), f"{sum(m.weights for m in part):,}", ""))
    sides = ("left", "left", "right", "right", "left")
    return tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=sides)
