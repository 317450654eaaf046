"""Which weights a pruning step removes: the interface of a criterion, and the paper's one, magnitude."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from accelerate import Accelerator
from torch import nn

from pruneonce.batch import Batch
from pruneonce.sparsity import masks
from pruneonce.sparsity.masks import MaskedLinear
from pruneonce.sparsity.patterns import Placement


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Batches on which a criterion measures the model, and the engine that computes it.

    sample: step -> batch; the first `batches` of them are read.
    """

    sample: Callable[[int], Batch]
    batches: int
    engine: Accelerator


class Criterion(Protocol):
    """A criterion is built from a Placement and a Calibration. Each one stands in a file of its own."""

    linear: ClassVar[type[MaskedLinear]]  # replaces every prunable linear while the model is trained

    def before_step(self, model: nn.Module) -> None:
        """Called before every optimizer step, also before those that prune nothing."""
        ...

    def prune(self, model: nn.Module, sparsity: float) -> None:
        """Recompute the masks of all masked linears of `model`, in place."""
        ...


@dataclass(frozen=True)
class Magnitude:
    """The weights of smallest |W| go: the paper's criterion."""

    placement: Placement
    calibration: Calibration
    linear: ClassVar[type[MaskedLinear]] = MaskedLinear

    def before_step(self, model: nn.Module) -> None:
        pass

    def prune(self, model: nn.Module, sparsity: float) -> None:
        masks.prune(model, sparsity, score=masks.magnitude, select=self.placement.select)
