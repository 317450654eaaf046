"""A cell of the study: one variant at one sparsity on one task, for several learning rates and seeds.

The first seed tries every rate, validation chooses one, and the other seeds train with it. Every variant begins with the
head of the task's teacher, and takes the same number of steps on the same batches. Test scores are PyTorch's. The int8
score is that of the fake-quantized model. One process trains all models of a cell. Only metrics are an
out. Finished models stay in the scratch folder until the cell is finished.

reads   start_folder    masked LM, dense or sparse              prepare_teacher, study_sparsify
        teacher_folder  dense task model                        teach_task
        splits          tokenised train, validation, test       prepare_task
source  Zafrir et al. 2021, arXiv:2111.05754, table 1
"""

from pathlib import Path

from pipeline.history import Log
from pipeline.params.sections import Common, Finetune, Quantize, Sparsify
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
    sparsity: Item,
    start_folder: Dep,
    teacher_folder: Dep,
    splits: Dep,
    *,
    common: Common,
    sparsify: Sparsify,
    finetune: Finetune,
    quantize: Quantize,
    study: Study,
    log: Log,
) -> Metrics:
    chosen, steps, recipe, (first, *others) = study.variants[variant], study.steps[item], study.recipe, study.recipe.seeds
    task = Task.read(splits, teacher_folder, accelerator(common, micro_batches=finetune.micro_batches))
    teacher = task.teacher(teacher_folder, attention=common.attention)
    cell = trials.Trials(task, teacher, attention=common.attention, log=log, name=f"{item} {variant} {sparsity}")
    pruned = checkpoint.prunable_in(start_folder, teacher, sparsify.prunable)
    schedule = trials.MagnitudePruning(
        prunable=pruned,
        pattern=sparsify.pattern,
        scope=sparsify.scope,
        sparsity=float(sparsity),
        prune_end_steps=trials.prune_end_steps(chosen.pruning, recipe.prune_end_ratio, steps=steps),
        prune_every_steps=recipe.prune_every_steps,
    )
    distillation = trials.weighted(finetune.distillation, chosen)

    def finetuned(*, rate: float, seed: int) -> Path:
        p = finetune.model_copy(update={"learning_rate": rate, "distillation": distillation})
        return cell.finetuned(start_folder, chosen.pruning, schedule, p, steps=steps, seed=seed)

    tried = {rate: finetuned(rate=rate, seed=first) for rate in recipe.learning_rates}
    validation = {rate: task.score(cell.load(folder), "validation") for rate, folder in tried.items()}
    rate = trials.best_rate(validation)
    models = {first: tried[rate], **{seed: finetuned(rate=rate, seed=seed) for seed in others}}
    pattern = masks.zeros(cell.load(tried[rate]), pruned)
    metrics = {
        "learning_rate": rate,
        "validation": {f"{rate:g}": score for rate, score in validation.items()},
        "test": {str(seed): task.score(cell.load(folder), "test") for seed, folder in models.items()},
        "steps": steps,
        "sparsity": masks.sparsity(pattern),
        "encoder_bytes": sizes.pattern_bytes(pattern, bits=32),
    }
    if not chosen.int8:
        return metrics
    int8 = {
        "test": {str(seed): cell.int8_score(folder, pruned, quantize, seed=seed) for seed, folder in models.items()},
        "steps": steps + task.batches(quantize, seed=first).steps(quantize.epochs),
        "encoder_bytes": sizes.pattern_bytes(pattern, bits=8),
    }
    return {**metrics, "int8": int8}


if __name__ == "__main__":
    main(run)
