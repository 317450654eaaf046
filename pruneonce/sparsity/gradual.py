"""Gradual pruning: sparsity rises along a cubic curve while the model is trained, until the masks freeze."""

from collections.abc import Collection
from typing import Protocol

from torch import Tensor, nn

from pruneonce.sparsity import masks, patterns
from pruneonce.sparsity.criterion import Calibration, Criterion, Magnitude
from pruneonce.sparsity.least_squares import LeastSquares
from pruneonce.sparsity.movement import Movement
from pruneonce.sparsity.second_order import SecondOrder

CRITERIA: dict[str, type[Criterion]] = {
    "least_squares": LeastSquares,
    "magnitude": Magnitude,
    "movement": Movement,
    "second_order": SecondOrder,
}


class Schedule(Protocol):
    """The numbers of a gradual pruning, as params.yaml has them. Every step is an optimizer step."""

    @property
    def prunable(self) -> str | Collection[str] | None: ...  # which linears count, as in `masks.prunable`
    @property
    def sparsity(self) -> float: ...  # the target, in [0, 1]
    @property
    def initial_sparsity(self) -> float: ...  # the first jump
    @property
    def pattern(self) -> str: ...  # of patterns.PATTERNS
    @property
    def scope(self) -> str: ...  # of patterns.SCOPES
    @property
    def first_criterion(self) -> str: ...  # of CRITERIA: decides at the first jump
    @property
    def criterion(self) -> str: ...  # of CRITERIA: decides at every pruning step after it
    @property
    def prune_begin_steps(self) -> int: ...  # the step of the first jump
    @property
    def prune_end_steps(self) -> int: ...  # the first step with the target sparsity
    @property
    def freeze_masks_steps(self) -> int: ...  # the last pruning step: the masks stay from there
    @property
    def prune_every_steps(self) -> int: ...  # steps between two prunings


class GradualPruning:
    """Zhu & Gupta's gradual pruning of one model.

    The prunable linears of `model` become masked ones, in place. `before_step` prunes them, `finish` makes them plain
    linears again.
    Raises ModelError if no linear is prunable, or if the pattern does not fit one of them.
    Source: Zafrir et al. 2021, arXiv:2111.05754, "student pruning".
    """

    def __init__(self, model: nn.Module, schedule: Schedule, calibration: Calibration):
        self.model, self.schedule = model, schedule
        linears = masks.prunable(model, schedule.prunable)
        self.placement = patterns.placement(schedule.pattern, schedule.scope, linears)
        self.first = CRITERIA[schedule.first_criterion](self.placement, calibration)
        self.criterion = CRITERIA[schedule.criterion](self.placement, calibration)
        masks.mask_linears(model, schedule.prunable, self.criterion.linear)

    def before_step(self, step: int) -> dict[str, float]:
        """Prune if this is a pruning step. Returns the sparsity of the masked linears."""
        s = self.schedule
        self.criterion.before_step(self.model)
        if is_pruning_step(step, begin=s.prune_begin_steps, freeze=s.freeze_masks_steps, every=s.prune_every_steps):
            criterion = self.first if step == s.prune_begin_steps else self.criterion
            criterion.prune(self.model, self.sparsity(step))
        return {"sparsity": masks.masked_sparsity(self.model)}

    def sparsity(self, step: int) -> float:
        """Fraction of weights that are pruned after this step's pruning, in [0, 1]."""
        s = self.schedule
        return cubic_sparsity(
            step, begin=s.prune_begin_steps, end=s.prune_end_steps, initial=s.initial_sparsity, target=s.sparsity
        )

    def finish(self) -> dict[str, Tensor]:
        """Write the zeros into the weights. Returns the pattern: name -> bool[out, in], True where pruned.

        Raises PatternBroken unless the pattern has the target sparsity.
        """
        pattern = masks.bake(self.model)
        masks.check_sparsity(pattern, self.schedule.sparsity, self.placement.select)
        return pattern


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
