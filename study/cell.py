"""A cell of the study: one variant by one criterion at one sparsity on one task, for several learning rates and seeds.

The first seed tries rates until the best one on validation has tried neighbours on both sides. The other seeds train with
the best. Every variant begins with the head of the task's teacher, and takes the same number of steps on the same batches.
Test scores are PyTorch's. The int8 score is that of the fake-quantized model. One process trains all models of a cell. Only
metrics are an out. Finished models stay in the scratch folder until the cell is finished.

reads   start_folder    masked LM, dense or sparse              prepare_teacher, study_sparsify
        teacher_folder  dense task model                        teach_task
        splits          tokenised train, validation, test       prepare_task
source  Zafrir et al. 2021, arXiv:2111.05754, table 1
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.history import Log
from pipeline.params.sections import Common, Finetune, PrepareCorpus, Quantize, Sparsify
from pipeline.params.study import Study
from pipeline.stage import Dep, Item, Metrics, main
from pruneonce.engine import accelerator
from pruneonce.models import checkpoint
from pruneonce.sparsity import masks
from pruneonce.training.task import Task
from study import sizes, trials


def run(
    item: Item,
    variant: Item,
    criterion: Item,
    sparsity: Item,
    start_folder: Dep,
    teacher_folder: Dep,
    splits: Dep,
    *,
    common: Common,
    prepare_corpus: PrepareCorpus,
    sparsify: Sparsify,
    finetune: Finetune,
    quantize: Quantize,
    study: Study,
    log: Log,
) -> Metrics:
    chosen, recipe, (first, *others) = study.variants[variant], study.recipe, study.recipe.seeds
    task = Task.read(splits, teacher_folder, accelerator(common, micro_batches=finetune.micro_batches))
    teacher = task.teacher(teacher_folder, attention=common.attention)
    cell = trials.Trials(task, teacher, attention=common.attention, log=log, name=f"{item} {variant} {criterion} {sparsity}")
    pruned = checkpoint.prunable_in(start_folder, teacher, sparsify.prunable)
    distillation = trials.weighted(finetune.distillation, chosen)

    def finetuned(rate: float, seed: int, steps: int) -> Path:
        schedule = trials.LatePruning(
            prunable=pruned,
            pattern=sparsify.pattern,
            scope=sparsify.scope,
            sparsity=float(sparsity),
            criterion="magnitude" if chosen.pruning == "none" else criterion,
            calibration_tokens=sparsify.calibration_batches * sparsify.batch_size * prepare_corpus.block_tokens,
            prune_end_steps=trials.prune_end_steps(chosen.pruning, recipe.prune_end_ratio, steps=steps),
            prune_every_steps=recipe.prune_every_steps,
        )
        p = finetune.model_copy(update={"learning_rate": rate, "distillation": distillation})
        name = f"{rate:g}-{seed}-{steps}"
        return cell.finetuned(start_folder, chosen.pruning, schedule, p, steps=steps, seed=seed, name=name)

    def tested(models: Mapping[int, Path]) -> dict[str, Any]:
        return _by_seed(
            {seed: cell.tested(cell.load(folder), resamples=recipe.resamples) for seed, folder in models.items()}
        )

    def int8(seed: int, folder: Path) -> trials.Tested:
        return cell.int8(folder, pruned, quantize, seed=seed, resamples=recipe.resamples)

    steps = study.steps[item]
    validation = trials.climb(
        recipe.learning_rates,
        recipe.first_learning_rate,
        lambda rate: task.score(cell.load(finetuned(rate, first, steps)), "validation"),
    )
    rate = trials.best_rate(validation)
    models = {seed: finetuned(rate, seed, steps) for seed in (first, *others)}
    pattern = masks.zeros(cell.load(models[first]), pruned)
    metrics: dict[str, Any] = {
        "learning_rate": rate,
        "bracketed": len(trials.around(recipe.learning_rates, rate)) == 3,
        "validation": {f"{rate:g}": score for rate, score in sorted(validation.items())},
        **tested(models),
        "steps": steps,
        "sparsity": masks.sparsity(pattern),
        "encoder_bytes": sizes.pattern_bytes(pattern, bits=32),
    }
    if chosen.int8:
        metrics["int8"] = {
            **_by_seed({seed: int8(seed, folder) for seed, folder in models.items()}),
            "steps": steps + task.batches(quantize, seed=first).steps(quantize.epochs),
            "encoder_bytes": sizes.pattern_bytes(pattern, bits=8),
        }
    more = study.longer
    if (item, criterion, float(sparsity)) == (more.task, more.criterion, more.sparsity) and variant in more.variants:
        trained = {seed: finetuned(rate, seed, more.steps) for seed in models}
        metrics["longer"] = {**tested(trained), "steps": more.steps}
    return metrics


def _by_seed(models: Mapping[int, trials.Tested]) -> dict[str, dict[str, Any]]:
    """Scores on the test split, and on the rows that are drawn from it, by seed."""
    return {
        "test": {str(seed): found.score for seed, found in models.items()},
        "replicates": {str(seed): found.replicates for seed, found in models.items()},
    }


if __name__ == "__main__":
    main(run)
