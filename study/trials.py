"""The models of one cell, trained as `finetune` and `quantize` train, each kept until the cell is finished."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline.history import Log
from pipeline.params.sections import Distillation, Finetune, Quantize
from pipeline.params.study import Variant
from pruneonce import answers, quantization
from pruneonce.models import checkpoint
from pruneonce.sparsity import masks
from pruneonce.sparsity.criterion import Calibration
from pruneonce.sparsity.gradual import GradualPruning
from pruneonce.tasks.batches import Batches
from pruneonce.training.task import Task, distilled_loss, hard_loss
from study import finished


@dataclass(frozen=True, kw_only=True)
class LatePruning:
    """A `gradual.Schedule` from sparsity 0 at step 0. With prune_end_steps 0 it is one-shot pruning.

    calibration_tokens: of the task's texts, about as many as a criterion reads.
    """

    prunable: list[str]
    pattern: str
    scope: str
    sparsity: float
    criterion: str
    calibration_tokens: int
    prune_end_steps: int
    prune_every_steps: int
    initial_sparsity: ClassVar[float] = 0.0
    prune_begin_steps: ClassVar[int] = 0

    @property
    def first_criterion(self) -> str:
        """One-shot pruning is a first jump alone."""
        return self.criterion

    @property
    def freeze_masks_steps(self) -> int:
        """The step after which masks stay: the last pruning step."""
        return self.prune_end_steps


def prune_end_steps(pruning: str, end_ratio: float, *, steps: int) -> int:
    """The last pruning step, 0 unless pruning is gradual. A training of `steps` steps reaches it."""
    return min(round(end_ratio * steps), steps - 1) if pruning == "gradual" else 0


def calibration_batches(batches: Batches, tokens: int) -> int:
    """How many batches have about so many tokens, at least 1 and at most an epoch."""
    return min(len(batches), max(1, round(tokens * len(batches) / int(batches.lengths.sum()))))


def weighted(distillation: Distillation, variant: Variant) -> Distillation:
    """The distillation with the variant's weights. One without a soft loss learns from the labels alone."""
    weights = {"hard_weight": variant.hard_weight, "soft_weight": variant.soft_weight}
    if not variant.soft_weight:
        weights |= {"hidden_weight": 0.0, "attention_weight": 0.0}
    return distillation.model_copy(update=weights)


def best_rate(validation: Mapping[float, float]) -> float:
    """The learning rate with the highest validation score; of several such rates the lowest."""
    return min(validation, key=lambda rate: (-validation[rate], rate))


def climb(rates: Sequence[float], first: float, score: Callable[[float], float]) -> dict[float, float]:
    """The scores of the rates that were tried, until the best of them has both its neighbours in `rates` tried as well.

    rates: rising. first: of them, where the search begins. score: of a rate, on validation.
    """
    tried: dict[float, float] = {}
    best = first
    while left := [rate for rate in around(rates, best) if rate not in tried]:
        tried |= {rate: score(rate) for rate in left}
        best = best_rate(tried)
    return tried


def around(rates: Sequence[float], rate: float) -> Sequence[float]:
    """A rate and its neighbours, which are fewer than two at an end."""
    place = list(rates).index(rate)
    return rates[max(0, place - 1) : place + 2]


DRAW_SEED = 1  # the same rows are drawn for every model of every cell, so replicate i of two is a pair


@dataclass(frozen=True)
class Tested:
    """A model on the test split: its score, and the metric on rows that are drawn from the split with replacement."""

    score: float
    replicates: list[float]


@dataclass(frozen=True)
class Trials:
    """What all models of a cell share. name: of the cell, in progress bars."""

    task: Task
    teacher: Any
    attention: str
    log: Log
    name: str

    def load(self, folder: Path) -> Any:
        """A finished model, without dropout."""
        return self.task.model(folder, attention=self.attention, dropout=0.0)

    def tested(self, model: Any, *, resamples: int) -> Tested:
        """A model on the test split, and on `resamples` draws of its rows."""
        total, scorers = self.task.kind.scorers(self.task.splits["test"], self.task.logits(model, "test"))
        scorer = scorers[self.task.kind.metric]
        drawn = answers.replicates(total, scorer, resamples=resamples, seed=DRAW_SEED)
        return Tested(scorer(np.arange(total)), drawn)

    def finetuned(
        self, start_folder: Path, pruning: str, schedule: LatePruning, p: Finetune, *, steps: int, seed: int, name: str
    ) -> Path:
        """The folder of a model of this variant; it is trained unless it is finished. pruning: as in `Variant.pruning`.
        p.distillation: of `weighted`. name: of this model in the cell.

        Raises PatternBroken unless it has the sparsity of the schedule, and every zero that it began with.
        """
        task, d = self.task, p.distillation
        folder = self.log.scratch / name
        if finished.is_finished(folder):
            return folder
        student = task.student(start_folder, self.teacher, attention=self.attention, dropout=p.dropout)
        zeros = masks.zeros(student, schedule.prunable)
        batches = task.distilled_batches(p, seed=seed)
        read = calibration_batches(batches, schedule.calibration_tokens)
        calibration = Calibration(sample=batches, batches=read, engine=task.engine)
        gradual = GradualPruning(student, schedule, calibration)
        options = self._options(name)
        if pruning == "once":
            masks.lock(student)
        elif pruning != "none":
            options["before_step"] = gradual.before_step
        loss = distilled_loss(task.kind, self.teacher, d) if d.soft_weight else hard_loss(task.kind)
        task.fit(student, batches, loss, recipe=p, steps=steps, **options)
        masks.check_pattern(zeros, gradual.finish())
        finished.finish(folder, partial(checkpoint.save, student, task.tokenizer))
        options["checkpoints"].remove()
        return folder

    def int8(self, folder: Path, pruned: list[str], p: Quantize, *, seed: int, resamples: int) -> Tested:
        """On the test split, the model in `folder` after quantization-aware training with its zeros locked."""
        task, file = self.task, folder.with_name(f"{folder.name}.json")
        if finished.is_finished(file):
            return Tested(**json.loads(file.read_text()))
        student = task.model(folder, attention=self.attention, dropout=p.dropout)
        quantization.lock(student, pruned, momentum=p.range_momentum, weight_bits=p.weight_bits)
        batches = task.distilled_batches(p, seed=seed)
        steps = batches.steps(p.epochs)
        quantization.calibrate(student, map(batches, range(p.calibration_batches)), engine=task.engine)
        ratios = {"begin_ratio": p.begin_ratio, "freeze_ranges_ratio": p.freeze_ranges_ratio}
        options = self._options(f"int8-{seed}")
        options["before_step"] = quantization.before_step(student, steps=steps, **ratios)
        task.distil(student, self.teacher, batches, recipe=p, steps=steps, **options)
        quantization.freeze(student)
        found = self.tested(student, resamples=resamples)
        finished.finish(file, lambda part: part.write_text(json.dumps(asdict(found))))
        options["checkpoints"].remove()
        return found

    def _options(self, name: str) -> dict[str, Any]:
        """Keywords of `Task.fit` for one model. `name` stands before the name of every metric."""
        return {
            "log": lambda step, metrics: self.log(step, {f"{name}/{key}": value for key, value in metrics.items()}),
            "name": f"{self.name} {name}",
            "checkpoints": self.log.checkpoints(name),
        }
