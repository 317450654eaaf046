"""A cell of the study of patterns: one pattern at one sparsity on one task, fine-tuned and quantized for several seeds.

The recipe is the one of the stages `finetune` and `quantize`, with the seed of each model in place of common.seed. Test
scores are PyTorch's; the int8 score is that of the fake-quantized model. Finished models stay in the scratch folder until
the cell is finished.

reads   sparse_folder   sparse masked LM                        patterns_sparsify
        teacher_folder  dense task model                        teach_task, patterns_teach_task
        splits          tokenised train, validation, test       prepare_task, patterns_prepare_task
writes  model_folder    quantized model of the first seed
"""

import shutil

from pipeline.history import Log
from pipeline.params.patterns import Patterns
from pipeline.params.sections import Common, Finetune, Quantize, Sparsify
from pipeline.stage import Dep, Item, Metrics, Out, main
from pruneonce.engine import accelerator
from pruneonce.models import checkpoint
from pruneonce.sparsity import masks
from pruneonce.training.task import Task
from study import trials
from study.patterns.models import Models


def run(
    item: Item,
    pattern: Item,
    sparsity: Item,
    sparse_folder: Dep,
    teacher_folder: Dep,
    splits: Dep,
    model_folder: Out,
    *,
    common: Common,
    sparsify: Sparsify,
    finetune: Finetune,
    quantize: Quantize,
    patterns: Patterns,
    log: Log,
) -> Metrics:
    task = Task.read(splits, teacher_folder, accelerator(common, micro_batches=finetune.micro_batches))
    teacher = task.teacher(teacher_folder, attention=common.attention)
    cell = Models(task, teacher, attention=common.attention, log=log, name=f"{item} {pattern} {sparsity}")
    pruned = checkpoint.load_pruned(sparse_folder, teacher)
    reached = trials.LatePruning(  # nothing is pruned here: it says what the zeros must be
        prunable=pruned,
        pattern=pattern,
        scope=sparsify.scope,
        sparsity=float(sparsity),
        criterion="magnitude",
        calibration_tokens=0,
        prune_end_steps=0,
        prune_every_steps=1,
    )
    steps = {
        "finetune": task.batches(finetune, seed=common.seed).steps(finetune.epochs),
        "quantize": task.batches(quantize, seed=common.seed).steps(quantize.epochs),
    }
    sparse = {
        seed: cell.finetuned(
            sparse_folder, "once", reached, finetune, steps=steps["finetune"], seed=seed, name=f"finetune-{seed}"
        )
        for seed in patterns.seeds
    }
    int8 = {seed: cell.quantized(folder, pruned, quantize, seed=seed) for seed, folder in sparse.items()}
    shutil.copytree(int8[patterns.seeds[0]], model_folder, dirs_exist_ok=True)
    return {
        "sparse": {str(seed): task.score(cell.load(folder), "test") for seed, folder in sparse.items()},
        "int8": {str(seed): task.score(cell.load_quantized(folder), "test") for seed, folder in int8.items()},
        "steps": steps,
        "sparsity": masks.sparsity(masks.zeros(cell.load(model_folder), pruned)),
    }


if __name__ == "__main__":
    main(run)
