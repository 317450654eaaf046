"""Gradual pruning: sparsity as a function of the step."""


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
