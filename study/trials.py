"""What every trial of a comparison shares: pruning while a task is learned, the choice of a rate, the size of a pattern.

And what was finished before a trial was stopped: a file or a folder that is believed only as long as its checksum holds.
"""

from collections.abc import Callable, Mapping

from torch import nn

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
