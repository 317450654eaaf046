"""Numbers that depend on the optimizer step, and on nothing else."""

import math


def cubic_sparsity(step: int, *, begin: int, end: int, initial: float, target: float) -> float:
    """Sparsity in [0, 1] at optimizer step `step`: 0 before `begin`, `target` from `end` on.

    s(t) = s_f + (s_i - s_f) (1 - (t - t_0) / (t_1 - t_0))^3   for t_0 <= t < t_1
    `initial` > 0 is a first jump at `begin`; begin == end is one-shot pruning.
    Raises ValueError unless 0 <= begin <= end and 0 <= initial <= target <= 1.
    Source: Zhu & Gupta 2017, arXiv:1710.01878, eq. 1.
    """
    if not (0 <= begin <= end and 0 <= initial <= target <= 1):
        raise ValueError(f"need 0 <= begin <= end, 0 <= initial <= target <= 1; got {begin=} {end=} {initial=} {target=}")
    if step < begin:
        return 0.0
    if step >= end:
        return target
    return target + (initial - target) * (1.0 - (step - begin) / (end - begin)) ** 3


def is_pruning_step(step: int, *, begin: int, freeze: int, every: int) -> bool:
    """Whether masks are recomputed before this step: at `begin`, every `every` steps from there, last at `freeze`."""
    return begin <= step <= freeze and ((step - begin) % every == 0 or step == freeze)


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
