"""Which weights a pruning step removes: the interface of a criterion, and the paper's one, magnitude."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar

from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn, uint8

from pruneonce.batch import Batch, inputs, pieces
from pruneonce.sparsity import masks
from pruneonce.sparsity.masks import MaskedLinear, body
from pruneonce.sparsity.patterns import Placement


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Batches on which a criterion measures the model, and the engine that computes it.

    sample: step -> batch; the first `batches` of them are read.
    """

    sample: Callable[[int], Batch]
    batches: int
    engine: Accelerator

    def pieces(self) -> Iterator[Batch]:
        """What a model reads of the batches, in pieces as small as in training, on the engine's device."""
        for step in range(self.batches):
            for piece in pieces(inputs(self.sample(step)), self.engine):
                yield {name: tensor.to(self.engine.device) for name, tensor in piece.items()}

    def read(self, model: nn.Module, batch: Batch) -> None:
        """Run the model's body on a batch."""
        with self.engine.autocast():
            body(model)(**batch)


@dataclass(frozen=True)
class Criterion(ABC):
    """A rule for which weights go. Those that need more than |W| stand in files of their own."""

    placement: Placement
    calibration: Calibration
    linear: ClassVar[type[MaskedLinear]] = MaskedLinear  # replaces every prunable linear while the model is trained

    def before_step(self, model: nn.Module) -> None:  # noqa: B027, most criteria have nothing to do between prunings
        """Called before every optimizer step, also before those that prune nothing."""

    @abstractmethod
    def prune(self, model: nn.Module, sparsity: float) -> None:
        """Recompute the masks of all masked linears of `model`, in place."""


class Magnitude(Criterion):
    """The weights of smallest |W| go: the paper's criterion."""

    def prune(self, model: nn.Module, sparsity: float) -> None:
        masks.prune(model, sparsity, score=masks.magnitude, select=self.placement.select)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout is off inside, so that what a criterion measures is what the model computes when it is used."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def watching(linears: Mapping[str, nn.Linear], see: Callable[[str, Tensor], object]) -> Iterator[None]:
    """Inside, see(name, x) is called before a linear of `linears` runs on x."""

    def hook(name: str) -> Callable[..., None]:
        def seen(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            see(name, args[0])

        return seen

    with ExitStack() as hooks:
        for name, linear in linears.items():
            hooks.callback(linear.register_forward_pre_hook(hook(name)).remove)
        yield


def share(linears: Iterable[MaskedLinear]) -> None:
    """Give every process the weights, biases and masks of the first one, where a pruning sets them.

    All processes prune the same weights on the same batches, but another processor may round otherwise. Later steps share
    gradients and not weights, so such a difference would stay.
    """
    for linear in linears:
        broadcast(linear.weight.data)
        if linear.bias is not None:
            broadcast(linear.bias.data)
        broadcast(linear.mask.view(uint8))  # gloo sends no booleans
