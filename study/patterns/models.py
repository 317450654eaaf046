"""The models of one cell, each kept until the cell is finished: sparse ones of `Trials`, and quantized ones of these."""

from functools import partial
from pathlib import Path
from typing import Any

from pipeline.params.sections import Quantize
from pruneonce import quantization
from pruneonce.models import checkpoint
from pruneonce.sparsity import masks
from study import finished, trials


class Models(trials.Trials):
    """`Trials` that also keep their quantized models."""

    def quantized(self, folder: Path, pruned: list[str], p: Quantize, *, seed: int) -> Path:
        """The folder of the model in `folder` after `quantize`, as that stage writes it; trained unless it is finished.

        Raises PatternBroken if a zero is lost.
        """
        task, name = self.task, f"int8-{seed}"
        path = self.log.scratch / name
        if finished.is_finished(path):
            return path
        student = task.model(folder, attention=self.attention, dropout=p.dropout)
        pattern = quantization.lock(student, pruned, momentum=p.range_momentum, weight_bits=p.weight_bits)
        batches = task.distilled_batches(p, seed=seed)
        steps = batches.steps(p.epochs)
        quantization.calibrate(student, map(batches, range(p.calibration_batches)), engine=task.engine)
        ratios = {"begin_ratio": p.begin_ratio, "freeze_ranges_ratio": p.freeze_ranges_ratio}
        options = self._options(name)
        options["before_step"] = quantization.before_step(student, steps=steps, **ratios)
        task.distil(student, self.teacher, batches, recipe=p, steps=steps, **options)
        quantization.freeze(student)
        linears = quantization.quantized_linears(student)  # baked, the student has plain linears again
        masks.check_pattern(pattern, masks.bake(student))
        finished.finish(path, partial(_save, student, task.tokenizer, linears))
        options["checkpoints"].remove()
        return path

    def load_quantized(self, folder: Path) -> Any:
        """A finished quantized model, which computes on the grid of int8."""
        model = self.load(folder)
        quantization.load(model, folder)
        return model


def _save(student: Any, tokenizer: Any, linears: Any, folder: Path) -> None:
    checkpoint.save(student, tokenizer, folder)
    quantization.save(linears, folder)
