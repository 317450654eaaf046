"""What every trial of a comparison shares: pruning while a task is learned, the choice of a rate, the size of a pattern.

And what was finished before a trial was stopped: a file or a folder that is believed only as long as its checksum holds.
"""

import hashlib
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from pruneonce.sparsity import gradual, masks


def pruned_while_learning(
    model: nn.Module, select: masks.Select = masks.uniform, *, target: float, end: int, every: int
) -> Callable[[int], dict[str, float]]:
    """What to do before a step: magnitude pruning of the masked linears up to step `end`; then the masks stay.

    select: where zeros may lie, and what a weight competes with. Sparsity follows Zhu & Gupta's cubic from 0 to `target`,
    every so many steps and at `end`, which must come; end = 0 is one-shot pruning.
    """

    def before_step(step: int) -> dict[str, float]:
        if gradual.is_pruning_step(step, begin=0, freeze=end, every=every):
            sparsity = gradual.cubic_sparsity(step, begin=0, end=end, initial=0.0, target=target)
            masks.prune(model, sparsity, select=select)
        return {"sparsity": masks.masked_sparsity(model)}

    return before_step


def best_rate(validation: Mapping[float, float]) -> float:
    """The learning rate with the highest validation score; the lowest of those that tie."""
    return min(validation, key=lambda rate: (-validation[rate], rate))


def _sha256(path: Path) -> str:
    """Of a file's bytes, or of the names and bytes of all files of a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        digest.update(f"{file.name if path.is_dir() else ''} {file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _seal(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def finish(part: Path, path: Path) -> None:
    """Give what was written under a name of its own its name, and a checksum beside it, first: a kill loses both or none."""
    _seal(path).write_text(_sha256(part))
    part.rename(path)


def finished(path: Path) -> bool:
    """Whether it was finished. What is there and is not what was written is removed, with a line, to be made again."""
    if not path.exists():
        return False
    try:
        if _seal(path).read_text() == _sha256(path):
            return True
    except (OSError, ValueError):
        pass
    print(f"expected {path} as it was written, found it changed. It is discarded, and made again.", file=sys.stderr)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return False


def bitmap_bytes(weights: int, zeros: int, *, bits: int) -> float:
    """Bytes of a sparse matrix as a bit a weight, which says whether it is zero, and the values that are not.

    weights/8 + (weights - zeros)·bits/8; without zeros no bitmap is needed. bits: of one value.
    """
    if not 0 <= zeros <= weights:
        raise ValueError(f"need 0 <= zeros <= weights, got {zeros}, {weights}")
    return (weights if zeros else 0) / 8 + (weights - zeros) * bits / 8


def pattern_bytes(pattern: Mapping[str, Tensor], *, bits: int) -> float:
    """`bitmap_bytes` of all matrices of a sparsity pattern, bool each, True where zero."""
    return sum(bitmap_bytes(zero.numel(), int(zero.sum()), bits=bits) for zero in pattern.values())
