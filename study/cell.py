"""A cell of the study: one variant at one sparsity on one task, over a short grid of learning rates and several seeds.

The first seed tries every rate, validation chooses, the other seeds train with that one. Every variant begins with the
head of the task's teacher and takes the same number of steps on the same batches. Test scores are PyTorch's; int8 is the
fake-quantized model, which computes what ships (in the pipeline `export` checks that). One process trains all models of
a cell, for starting one costs as much as 30 steps. What is finished stays in the scratch folder: a cell that was stopped
goes on with the model it was at. Only numbers leave it; models of all cells and seeds would be gigabytes.

reads   start    masked LM, dense or sparse                     prepare_teacher, study_sparsify
        teacher  dense task model                               teach_task
        splits   tokenised train, validation, test              prepare_task
source  Zafrir et al. 2021, arXiv:2111.05754, table 1
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.params.sections import Common, Distilled, Finetune, Quantize, Sparsify
from pipeline.params.study import Study, StudyRecipe
from pipeline.stage import Dep, Item, Log, Metrics, main
from pruneonce import quantization
from pruneonce.engine import accelerator
from pruneonce.models import checkpoint
from pruneonce.sparsity import masks, patterns
from pruneonce.training.task import Task, distilled_loss, hard_loss
from study import trials


def run(
    task: Item,
    variant: Item,
    sparsity: Item,
    start: Dep,
    teacher: Dep,
    splits: Dep,
    *,
    common: Common,
    sparsify: Sparsify,
    finetune: Finetune,
    quantize: Quantize,
    study: Study,
    log: Log,
) -> Metrics:
    row, steps, (first, *others) = study.variants[variant], study.steps[task], study.recipe.seeds
    engine = accelerator(common, micro_batches=finetune.micro_batches)
    lesson = Task.read(splits, teacher, engine)
    mentor = lesson.teacher(teacher, attention=common.attention)
    bench = Bench(lesson, mentor, common.attention, log, f"{task} {variant} {sparsity}")
    pruned = checkpoint.prunable_in(start, mentor, sparsify.prunable)

    def model(*, rate: float, seed: int) -> Path:
        p = finetune.model_copy(update={"learning_rate": rate, "soft_ratio": row.soft_ratio})
        given = (bench, start, pruned, row.pruning, study.recipe, p, sparsify)
        return finetuned(*given, steps=steps, sparsity=float(sparsity), seed=seed)

    tried = {rate: model(rate=rate, seed=first) for rate in study.recipe.learning_rates}
    validation = {rate: lesson.score(bench.load(folder), "validation") for rate, folder in tried.items()}
    rate = trials.best_rate(validation)
    models = {first: tried[rate], **{seed: model(rate=rate, seed=seed) for seed in others}}
    pattern = masks.zeros(bench.load(tried[rate]), pruned)
    found: dict[str, Any] = {
        "learning_rate": rate,
        "validation": {f"{rate:g}": value for rate, value in validation.items()},
        "test": {str(seed): lesson.score(bench.load(folder), "test") for seed, folder in models.items()},
        "steps": steps,
        "sparsity": masks.sparsity(pattern),
        "encoder_bytes": trials.pattern_bytes(pattern, bits=32),
    }
    if row.int8:
        test = {str(seed): quantized(bench, folder, pruned, quantize, seed=seed) for seed, folder in models.items()}
        more = lesson.batches(quantize, seed=first).steps(quantize.epochs)
        found["int8"] = {"test": test, "steps": steps + more, "encoder_bytes": trials.pattern_bytes(pattern, bits=8)}
    return found


@dataclass(frozen=True)
class Bench:
    """What all models of a cell share."""

    task: Task
    mentor: Any
    attention: str
    log: Log
    name: str

    def load(self, folder: Path, dropout: float | None = 0.0) -> Any:
        return self.task.model(folder, attention=self.attention, dropout=dropout)

    def fit(self, student: Any, p: Distilled, *, seed: int, name: str, **more: Any) -> None:
        """The training of `finetune` and `quantize`; where no weight is on the soft loss, no teacher is asked."""
        weights = {"soft_ratio": p.soft_ratio, "hidden_weight": p.hidden_weight, "attention_weight": p.attention_weight}
        distilled = partial(distilled_loss, self.task.kind, self.mentor, temperature=p.temperature, **weights)
        self.task.fit(
            student,
            self.task.batches(p, seed=seed),
            distilled() if p.soft_ratio else hard_loss(self.task.kind),
            recipe=p,
            log=lambda step, metrics: self.log(step, {f"{name}/{key}": value for key, value in metrics.items()}),
            name=f"{self.name} {name}",
            checkpoint=self.state(name),
            **more,
        )

    def state(self, name: str) -> Path:
        """Where a training that was stopped goes on."""
        return self.log.scratch / f"{name}.safetensors"


def finetuned(
    bench: Bench,
    start: Path,
    pruned: list[str],
    how: str,
    recipe: StudyRecipe,
    p: Finetune,
    sparsify: Sparsify,
    *,
    steps: int,
    sparsity: float,
    seed: int,
) -> Path:
    """The folder of a model of this variant, out of scratch if it was trained before the cell was stopped.

    how: weights are pruned, as `Variant.pruning` says; what is pruned while a task is learned has the pattern and scope of
    what is pruned once.
    """
    name = f"{p.learning_rate:g}-{seed}"
    folder = bench.log.scratch / name
    if trials.finished(folder):
        return folder
    student = checkpoint.load_sparse_task_model(start, bench.mentor, attention=bench.attention, dropout=p.dropout)
    student = student.to(bench.task.engine.device)
    given = masks.zeros(student, pruned)
    linears = masks.mask_linears(student, pruned)
    select = patterns.SCOPES[sparsify.scope](patterns.fitting(sparsify.pattern, linears))
    end = min(round(recipe.prune_end_ratio * steps), steps - 1) if how == "gradual" else 0
    during: dict[str, Any] = {}
    if how == "once":
        masks.lock(student)
    elif how != "none":
        every = recipe.prune_every_steps
        during["before_step"] = trials.pruned_while_learning(student, select, target=sparsity, end=end, every=every)

    bench.fit(student, p, seed=seed, name=name, steps=steps, **during)
    masks.bake(student)
    pattern = masks.zeros(student, pruned)
    masks.check_pattern(given, pattern)
    masks.check_sparsity(pattern, sparsity, select)
    part = folder.with_name(f"{name}.model.part")  # not with_suffix: there is a point in the rate
    checkpoint.save(student, bench.task.tokenizer, part)
    trials.finish(part, folder)
    bench.state(name).unlink(missing_ok=True)
    return folder


def quantized(bench: Bench, folder: Path, pruned: list[str], p: Quantize, *, seed: int) -> float:
    """Test score of the model in `folder` after quantization-aware training, its zeros locked."""
    done = folder.with_name(f"{folder.name}.json")
    if trials.finished(done):
        return json.loads(done.read_text())
    student = bench.load(folder, dropout=p.dropout)
    wrap = partial(quantization.FakeQuantLinear, momentum=p.range_momentum, weight_bits=p.weight_bits)
    masks.mask_linears(student, pruned, wrap)
    masks.lock(student)
    batches = bench.task.batches(p, seed=seed)
    steps = batches.steps(p.epochs)
    quantization.calibrate(student, map(batches, range(p.calibration_batches)), engine=bench.task.engine)
    during = quantization.aware(student, steps=steps, begin_ratio=p.begin_ratio, freeze_ranges_ratio=p.freeze_ranges_ratio)
    bench.fit(student, p, seed=seed, name=f"int8-{seed}", steps=steps, before_step=during)
    quantization.settle(student)
    value = bench.task.score(student, "test")
    part = done.with_name(f"{done.name}.part")
    part.write_text(json.dumps(value))
    trials.finish(part, done)
    bench.state(f"int8-{seed}").unlink(missing_ok=True)
    return value


if __name__ == "__main__":
    main(run)
