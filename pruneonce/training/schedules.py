"""Learning rates: functions of the optimizer step and of nothing else."""

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol


def linear_decay(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Learning rate: up to `peak` over `warmup` steps, then linearly towards 0 at `steps`. Positive for step < steps."""
    return peak * min((step + 1) / (warmup + 1), (steps - step) / max(1, steps - warmup))


def rewound_decay(step: int, *, steps: int, warmup: int, peak: float, begin: int, end: int, every: int) -> float:
    """Learning-rate rewinding: a linear decay that goes back to its state at `begin` whenever the model is pruned.

    Returns peak * factor >= 0. The factor is, with T' = steps - (end - begin):
        step < warmup           step / warmup
        step < begin            (T' - step) / (T' - warmup)
        begin <= step < end     (T' - step + k * every) / (T' - warmup), for k = floor((step - begin) / every) rewinds
        end <= step             (steps - step) / (T' - warmup)
    Source: Zafrir et al. 2021, arXiv:2111.05754, "learning rate rewinding", and its reference implementation.
    """
    shortened = steps - (end - begin)
    if step < warmup:
        return peak * step / warmup
    if begin <= step < end:
        left = shortened - step + math.floor((step - begin) / every) * every
    else:
        left = (shortened if step < begin else steps) - step
    return peak * max(0.0, left / max(1, shortened - warmup))


class PruningRecipe(Protocol):
    """The numbers of the learning rate of student pruning, as params.yaml has them."""

    @property
    def schedule(self) -> str: ...  # linear or rewound
    @property
    def steps(self) -> int: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...  # peak
    @property
    def prune_begin_steps(self) -> int: ...
    @property
    def prune_end_steps(self) -> int: ...
    @property
    def prune_every_steps(self) -> int: ...


def of_pruning(recipe: PruningRecipe) -> Callable[[int], float]:
    """Return the learning rate of student pruning: step -> rate."""
    shape = {"steps": recipe.steps, "warmup": recipe.warmup_steps}
    ramp = {"begin": recipe.prune_begin_steps, "end": recipe.prune_end_steps, "every": recipe.prune_every_steps}
    if recipe.schedule == "linear":
        return partial(linear_decay, **shape, peak=recipe.learning_rate)
    return partial(rewound_decay, **shape, **ramp, peak=recipe.learning_rate)
