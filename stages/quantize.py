"""Quantization-aware training: the sparse task model learns to compute with int8, its zeros locked, its teacher the same.

reads   sparse_folder   sparse task model; it is quantized where start is sparse finetune
        teacher_folder  dense task model; it is quantized where start is dense   teach_task
        splits          tokenised train, validation, test                        prepare_task
writes  model_folder    the task model with its zeros in place, and quantization.json
        history         losses by step
source  Zafrir et al. 2021, arXiv:2111.05754, "quantization-aware training"

With 0 epochs it is post-training quantization: calibrated, not trained. Its score is measured in any case.
"""

from pipeline.history import Log
from pipeline.params.sections import Common, Quantize
from pipeline.stage import Dep, Item, Metrics, Out, Record, launch
from pruneonce import quantization
from pruneonce.engine import accelerator
from pruneonce.models import checkpoint
from pruneonce.sparsity import masks
from pruneonce.training.task import Task


def run(
    item: Item,
    sparse_folder: Dep,
    teacher_folder: Dep,
    splits: Dep,
    model_folder: Out,
    history: Record,
    *,
    common: Common,
    quantize: Quantize,
    log: Log,
) -> Metrics:
    p = quantize
    engine = accelerator(common, micro_batches=p.micro_batches)
    task = Task.read(splits, teacher_folder, engine)
    teacher = task.teacher(teacher_folder, attention=common.attention)
    start_folder = {"sparse": sparse_folder, "dense": teacher_folder}[p.start]
    student = task.model(start_folder, attention=common.attention, dropout=p.dropout)
    pruned = checkpoint.load_pruned(sparse_folder, student)
    pattern = quantization.lock(student, pruned, momentum=p.range_momentum, weight_bits=p.weight_bits)
    batches = task.distilled_batches(p, seed=common.seed)
    steps = batches.steps(p.epochs)
    quantization.calibrate(student, map(batches, range(p.calibration_batches)), engine=engine)
    quantization.freeze(student)  # for this score; the training moves ranges again
    calibrated_score = task.score(student, "validation")

    task.distil(
        student,
        teacher,
        batches,
        recipe=p,
        steps=steps,
        before_step=quantization.before_step(
            student, steps=steps, begin_ratio=p.begin_ratio, freeze_ranges_ratio=p.freeze_ranges_ratio
        ),
        log=log,
        name=f"quantize {item}",
        checkpoints=log.checkpoints(),
    )
    quantization.freeze(student)
    score = task.score(student, "validation")
    linears = quantization.quantized_linears(student)  # baked, the student has plain linears again
    zeros = masks.bake(student)
    masks.check_pattern(pattern, zeros)
    checkpoint.save(student, task.tokenizer, model_folder)
    quantization.save(linears, model_folder)
    log.write_history(history)
    return {"validation_score": score, "ptq_validation_score": calibrated_score, "sparsity": masks.sparsity(zeros)}


if __name__ == "__main__":
    launch(run)
