"""Numbers that depend on the optimizer step, and on nothing else."""

import math


def linear_decay(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Learning rate: up to `peak` over `warmup` steps, then linearly towards 0 at `steps`. Positive for step < steps."""
    return peak * min((step + 1) / (warmup + 1), (steps - step) / max(1, steps - warmup))


def rewound_decay(step: int, *, steps: int, warmup: int, peak: float, begin: int, end: int, every: int) -> float:
    """Linear decay that is rewound to its state at `begin` whenever the model is pruned.

    With T = steps, w = warmup, P = end - begin and T' = T - P the factor on `peak` is
        t < w                 t / w
        t < begin             (T' - t) / (T' - w)
        begin <= t < end      (T' - t + floor((t - begin) / every) * every) / (T' - w)   pruning holds the rate up
        t >= end              (T - t) / (T' - w)                                         then its course to the end
    clipped at 0. Differs from the source by nothing but the names.
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
