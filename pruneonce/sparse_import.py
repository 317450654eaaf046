"""Sparse checkpoints of others: which linears hold zeros, in which pattern; the folder that `finetune` reads.

A linear counts as pruned if at least LEAST of its weights are exactly zero. A dense model has a few zeros by chance.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pruneonce.errors import ModelError
from pruneonce.models import checkpoint
from pruneonce.models.configuration import build_body, load_config
from pruneonce.models.folders import INDEX, WEIGHTS, reading
from pruneonce.sparsity import masks
from pruneonce.sparsity.patterns import PATTERNS, Pattern

LEAST = 0.1
WHOLE = 0.999  # share of the zeros that lie in whole blocks, if zeros are in blocks: a kept weight may be zero by chance


@dataclass(frozen=True)
class Found:
    """What a checkpoint holds. zeros: body's name of a pruned linear -> share of its weights that are zero."""

    zeros: dict[str, float]
    dense: tuple[str, ...]  # names of the linears of its layers that are not pruned
    sparsity: float  # of all pruned linears together
    pattern: str  # a name in PATTERNS

    def lines(self) -> list[str]:
        """The linears as a table in text, and one line for all."""
        rows = [f"{name}  {share:.1%} zeros" for name, share in self.zeros.items()]
        rows += [f"{name}  not pruned" for name in self.dense]
        least, most = min(self.zeros.values()), max(self.zeros.values())
        return [
            *rows,
            f"{len(self.zeros)} linears are pruned: {self.sparsity:.2%} of their weights are zero ({least:.1%} to "
            f"{most:.1%} of a linear), pattern {self.pattern}",
        ]


def inspect(folder: Path) -> Found:
    """Read the zeros of a checkpoint. Raises ModelError if no linear is pruned, or the folder holds no such model."""
    names = list(masks.prunable(build_body(load_config(folder), folder), None))
    zeros: dict[str, Tensor] = {}
    shares: dict[str, float] = {}
    for key, weight in _tensors(folder).items():
        name = next((n for n in names if f".{key}".endswith(f".{n}.weight")), None)
        if name is not None:
            shares[name] = float((weight == 0).float().mean())
            zeros |= {name: weight == 0} if shares[name] >= LEAST else {}
    if not zeros:
        most = max(shares, key=shares.__getitem__, default="")
        what = f"at most {shares[most]:.1%}, in {most}" if most else "none of its linears' weights"
        raise ModelError(
            f"expected a sparse checkpoint in {folder}, with at least {LEAST:.0%} zeros in the weights of a linear, found "
            f"{what}. This model is dense: take it as `common.model`, and let `sparsify` prune it."
        )
    ordered = {name: zeros[name] for name in names if name in zeros}
    return Found(
        zeros={name: shares[name] for name in ordered},
        dense=tuple(name for name in names if name not in ordered),
        sparsity=masks.sparsity(ordered),
        pattern=_pattern(ordered),
    )


def check_same(folder: Path, base: Path) -> None:
    """Raise ModelError unless the dense model has the sizes and the vocabulary of the sparse one: it becomes its teacher."""
    sizes, others = (_shapes(each) for each in (folder, base))
    if differ := [name for name in {**sizes, **others} if sizes.get(name) != others.get(name)]:
        name = differ[0]
        raise ModelError(
            f"expected a dense model of the sizes of the sparse one in {folder}, found {name} "
            f"{others.get(name, 'missing')} in {base} and {sizes.get(name, 'missing')} in the sparse one. Set "
            "`common.model` to the dense model that the sparse one was made from."
        )
    if any((folder / file).exists() for file in ("tokenizer.json", "vocab.txt", "vocab.json")):
        ours, theirs = (checkpoint.load_tokenizer(each).get_vocab() for each in (base, folder))
        if ours != theirs:
            raise ModelError(
                f"expected one vocabulary, found {len(theirs)} tokens in {folder} and {len(ours)} in {base}, or other ids "
                "for the same ones. Set `common.model` to the dense model that the sparse one was made from."
            )


def write(folder: Path, base: Path, found: Found, out: Path) -> None:
    """Write the folder that `finetune` reads: the body's weights bit for bit, the names of the pruned linears.

    Heads are left out: `finetune` begins with the head of the teacher. The tokenizer is that of the dense model.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    prefix = f"{_prefix(folder)}."
    tensors = _tensors(folder)
    inside = {key: value for key, value in tensors.items() if key.startswith(prefix)} or tensors
    out.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in inside.items()}, out / WEIGHTS, {"format": "pt"})
    text = json.dumps({**config, "pruned": list(found.zeros)}, indent=2, sort_keys=True)
    (out / "config.json").write_text(f"{text}\n", encoding="utf-8")
    checkpoint.load_tokenizer(base).save_pretrained(out)


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Every weight of the folder, as it is stored. Raises ModelError for another format than safetensors."""
    with reading("weights", folder):
        if (folder / WEIGHTS).exists():
            files = [folder / WEIGHTS]
        elif (folder / INDEX).exists():
            files = sorted({folder / name for name in json.loads((folder / INDEX).read_text())["weight_map"].values()})
        else:
            there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
            raise ModelError(
                f"expected weights in {folder / WEIGHTS}, found {there}. Convert them where you trust the file: load the "
                "model with transformers, and call save_pretrained."
            )
        tensors: dict[str, Tensor] = {}
        for file in files:
            with safe_open(file, "pt") as stored:
                tensors |= {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118, no dict
        return tensors


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The weights of the model's body and their shapes; a pooler is part of a task's head."""
    weights = build_body(load_config(folder), folder).named_parameters()
    return {name: tuple(weight.shape) for name, weight in weights if not name.startswith("pooler.")}


def _prefix(folder: Path) -> str:
    return str(build_body(load_config(folder), folder).base_model_prefix)


def _pattern(zeros: Mapping[str, Tensor]) -> str:
    """The first pattern that all matrices have."""
    for name in ("1x4", "4x1", "2:4", "4:8"):
        if all(_has(zero, PATTERNS[name]) for zero in zeros.values()):
            return name
    return "unstructured"


def _has(zero: Tensor, pattern: Pattern) -> bool:
    rows, columns = zero.shape
    width = pattern.columns * (pattern.group or 1)
    if rows % pattern.rows or columns % width:
        return False
    if pattern.group:  # of every group at least half is zero: 2:4 and 4:8
        return bool((zero.reshape(rows, -1, width).sum(-1) * 2 >= width).all())
    size = pattern.rows * pattern.columns
    whole = (pattern.pool(zero.to(torch.float32)) == size).sum() * size
    return float(whole) >= WHOLE * float(zero.sum())
