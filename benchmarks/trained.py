"""The library's training loop as the benchmarks run it, with the losses of the paper and of the default profile."""

import copy
import time
from collections.abc import Callable
from functools import partial

from accelerate.state import AcceleratorState
from torch import nn

from benchmarks.measuring import Compute
from benchmarks.models import PRUNABLE
from pipeline.params.sections import Distillation
from pruneonce.batch import Batch, Loss
from pruneonce.engine import accelerator
from pruneonce.sparsity import masks
from pruneonce.training import loop, schedules

PAPER = Distillation(temperature=2.0, hard_weight=0.5, soft_weight=0.5, hidden_weight=0.0, attention_weight=0.0)
PROFILE = Distillation(temperature=2.0, hard_weight=0.1, soft_weight=0.0, hidden_weight=1.0, attention_weight=0.0)
SOFT = Distillation(temperature=2.0, hard_weight=0.0, soft_weight=1.0, hidden_weight=0.0, attention_weight=0.0)


class Watch:
    """A `loop.Log` that keeps the loss and the end time of every step."""

    def __init__(self) -> None:
        self.ends, self.losses = list[float](), list[float]()

    def __call__(self, step: int, metrics) -> None:
        self.ends.append(time.perf_counter())
        self.losses.append(metrics["loss"])

    @property
    def seconds(self) -> float:
        """Time of all steps but the first, which allocates."""
        return self.ends[-1] - self.ends[0]


def fit(student: nn.Module, *args, **settings) -> Watch:
    """`train` on a copy of the student."""
    return train(copy.deepcopy(student), *args, **settings)


def train(
    student: nn.Module,
    batches: Callable[[int], Batch],
    loss: Loss,
    *,
    steps: int,
    compute: Compute,
    prune: Callable[[nn.Module], None],
) -> Watch:
    """Train the student in place. `prune` sets the masks of its masked linears."""
    AcceleratorState._reset_state()  # one for each process, and other sides compute in another precision
    engine = accelerator(compute)
    masks.mask_linears(student, PRUNABLE)
    prune(student)
    watch = Watch()
    loop.fit(
        student,
        batches,
        loss,
        engine=engine,
        learning_rate=partial(schedules.linear_decay, steps=steps, warmup=max(1, steps // 10), peak=1e-3),
        steps=steps,
        weight_decay=0.01,
        clip_norm=1.0,
        seed=compute.seed,
        log=watch,
        name=compute.precision,
    )
    return watch
