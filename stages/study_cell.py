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
from typing import Any, Self

from pipeline.params import Common, Distilled, Finetune, Quantize, Sparsify, Study, StudyRecipe, Variant
from pipeline.stage import Dep, Item, Log, Metrics, main
from pruneonce import checkpoint, examples, kinds, patterns, pruning, quantization, schedules, tasks, training, trials


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
    engine = training.accelerator(common, micro_batches=finetune.micro_batches)
    bench = Bench.of(teacher, splits, common, engine, log, name=f"{task} {variant} {sparsity}")
    pruned = checkpoint.prunable_in(start, bench.mentor, sparsify.prunable)
    model = partial(
        finetuned, bench, start, pruned, row, study.recipe, finetune, sparsify, steps=steps, sparsity=float(sparsity)
    )

    tried = {rate: model(rate=rate, seed=first) for rate in study.recipe.learning_rates}
    validation = {rate: bench.score(bench.load(folder), "validation") for rate, folder in tried.items()}
    rate = trials.best_rate(validation)
    models = {first: tried[rate], **{seed: model(rate=rate, seed=seed) for seed in others}}
    pattern = pruning.zeros(bench.load(tried[rate]), pruned)
    found: dict[str, Any] = {
        "learning_rate": rate,
        "validation": {f"{rate:g}": value for rate, value in validation.items()},
        "test": {str(seed): bench.score(bench.load(folder), "test") for seed, folder in models.items()},
        "steps": steps,
        "sparsity": pruning.sparsity(pattern),
        "encoder_bytes": trials.pattern_bytes(pattern, bits=32),
    }
    if row.int8:
        test = {str(seed): quantized(bench, folder, pruned, quantize, seed=seed) for seed, folder in models.items()}
        more = quantizing_steps(bench.batches(quantize, first), quantize)
        found["int8"] = {"test": test, "steps": steps + more, "encoder_bytes": trials.pattern_bytes(pattern, bits=8)}
    return found


@dataclass(frozen=True)
class Bench:
    """What all models of a cell share."""

    name: str
    kind: Any
    engine: Any
    tokenizer: Any
    mentor: Any
    splits: dict[str, Any]
    attention: str
    log: Log

    @classmethod
    def of(cls, teacher: Path, splits: Path, common: Common, engine: Any, log: Log, *, name: str) -> Self:
        kind, tokenizer = kinds.load(splits), checkpoint.load_tokenizer(teacher)
        mentor = checkpoint.load_task_model(kind.architecture, teacher, attention=common.attention, dropout=0.0)
        mentor = mentor.eval().requires_grad_(False).to(engine.device)
        read = {part: tasks.read_split(splits / f"{part}.arrow") for part in examples.SPLITS}
        return cls(name, kind, engine, tokenizer, mentor, read, common.attention, log)

    def load(self, folder: Path, dropout: float | None = 0.0) -> Any:
        model = checkpoint.load_task_model(self.kind.architecture, folder, attention=self.attention, dropout=dropout)
        return model.to(self.engine.device)

    def score(self, model: Any, split: str) -> float:
        """The task's metric on a split."""
        return kinds.score(model, self.kind, self.splits[split], self.tokenizer, engine=self.engine)

    def batches(self, p: Distilled, seed: int) -> tasks.Batches:
        train = self.splits["train"]
        sizes = {"batch_size": p.batch_size, "max_tokens": p.max_tokens}
        return tasks.Batches(train, self.kind, self.tokenizer, **sizes, seed=seed)

    def fit(self, student: Any, p: Distilled, *, soft_ratio: float, rate: float, seed: int, name: str, **more: Any) -> None:
        """The training of `finetune` and `quantize`; where no weight is on the soft loss, no teacher is asked."""
        inner = {"hidden_weight": p.hidden_weight, "attention_weight": p.attention_weight}
        distilled = partial(kinds.distilled_loss, self.kind, self.mentor, temperature=p.temperature, **inner)
        steps = more["steps"]
        training.fit(
            student,
            self.batches(p, seed),
            distilled(soft_ratio=soft_ratio) if soft_ratio else kinds.hard_loss(self.kind),
            engine=self.engine,
            learning_rate=partial(schedules.linear_decay, steps=steps, warmup=round(p.warmup_ratio * steps), peak=rate),
            weight_decay=p.weight_decay,
            clip_norm=p.clip_norm,
            seed=seed,
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
    row: Variant,
    recipe: StudyRecipe,
    p: Finetune,
    sparsify: Sparsify,
    *,
    steps: int,
    sparsity: float,
    rate: float,
    seed: int,
) -> Path:
    """The folder of a model of this variant, out of scratch if it was trained before the cell was stopped.

    What is pruned while a task is learned has the pattern and scope of what is pruned once.
    """
    name = f"{rate:g}-{seed}"
    folder = bench.log.scratch / name
    if folder.exists():
        return folder
    student = checkpoint.load_sparse_task_model(start, bench.mentor, attention=bench.attention, dropout=p.dropout)
    student = student.to(bench.engine.device)
    given = pruning.zeros(student, pruned)
    linears = pruning.mask_linears(student, pruned)
    select = patterns.SCOPES[sparsify.scope](patterns.fitting(sparsify.pattern, linears))
    end = min(round(recipe.prune_end_ratio * steps), steps - 1) if row.pruning == "gradual" else 0
    during: dict[str, Any] = {"soft_ratio": row.soft_ratio, "rate": rate, "seed": seed, "name": name, "steps": steps}
    if row.pruning == "once":
        pruning.lock(student)
    elif row.pruning != "none":
        every = recipe.prune_every_steps
        during["before_step"] = trials.pruned_while_learning(student, select, target=sparsity, end=end, every=every)

    bench.fit(student, p, **during)
    pruning.bake(student)
    pattern = pruning.zeros(student, pruned)
    pruning.check_pattern(given, pattern)
    pruning.check_sparsity(pattern, sparsity, select)
    part = folder.with_name(f"{name}.model.part")  # not with_suffix: there is a point in the rate
    checkpoint.save(student, bench.tokenizer, part)
    part.rename(folder)
    bench.state(name).unlink(missing_ok=True)
    return folder


def quantizing_steps(batches: tasks.Batches, p: Quantize) -> int:
    """Of the recipe of `quantize`: none without epochs, which is post-training quantization."""
    return batches.steps(p.epochs) if p.epochs else 0


def quantized(bench: Bench, folder: Path, pruned: list[str], p: Quantize, *, seed: int) -> float:
    """Test score of the model in `folder` after quantization-aware training, its zeros locked."""
    done = folder.with_name(f"{folder.name}.json")
    if done.exists():
        return json.loads(done.read_text())
    student = bench.load(folder, dropout=p.dropout)
    wrap = partial(quantization.FakeQuantLinear, momentum=p.range_momentum, weight_bits=p.weight_bits)
    pruning.mask_linears(student, pruned, wrap)
    pruning.lock(student)
    batches = bench.batches(p, seed)
    steps = quantizing_steps(batches, p)
    quantization.calibrate(student, map(batches, range(p.calibration_batches)), engine=bench.engine)

    def before_step(step: int) -> dict[str, float]:
        quantization.observe(student, step < p.freeze_ranges_ratio * steps)
        quantization.round_operands(student, step >= p.begin_ratio * steps)
        return {}

    bench.fit(
        student,
        p,
        soft_ratio=p.soft_ratio,
        rate=p.learning_rate,
        seed=seed,
        name=f"int8-{seed}",
        steps=steps,
        before_step=before_step,
    )
    quantization.observe(student, False)
    quantization.round_operands(student, True)
    value = bench.score(student, "test")
    done.write_text(json.dumps(value))
    bench.state(f"int8-{seed}").unlink(missing_ok=True)
    return value


if __name__ == "__main__":
    main(run)
