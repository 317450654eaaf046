"""Quantization-aware training: the sparse task model learns to live on integers, its zeros locked, its teacher the same.

With 0 epochs it is post-training quantization, the baseline: calibrated, not trained. What calibration alone gives is
measured before every training.

reads   sparse   sparse task model: what is quantized           finetune
        teacher  dense task model; quantized with start dense   teach_task
        splits   tokenised train, validation, test              prepare_task
writes  model    sparse task model, and ranges.json: (low, high) of every quantized linear's input
        history  losses by step
source  Zafrir et al. 2021, arXiv:2111.05754, "quantization-aware training"
"""

from functools import partial

from pipeline.params.sections import Common, Quantize
from pipeline.stage import Dep, Item, Log, Metrics, Out, Record, launch
from pruneonce import quantization
from pruneonce.engine import accelerator
from pruneonce.models import checkpoint
from pruneonce.sparsity import masks
from pruneonce.training.task import Task, distilled_loss


def run(
    item: Item,
    sparse: Dep,
    teacher: Dep,
    splits: Dep,
    model: Out,
    history: Record,
    *,
    common: Common,
    quantize: Quantize,
    log: Log,
) -> Metrics:
    p = quantize
    engine = accelerator(common, micro_batches=p.micro_batches)
    task = Task.read(splits, teacher, engine)
    mentor = task.teacher(teacher, attention=common.attention)
    start = {"sparse": sparse, "dense": teacher}[p.start]
    student = task.model(start, attention=common.attention, dropout=p.dropout)
    pruned = checkpoint.load_pruned(sparse)
    given = masks.zeros(student, pruned)
    fake_quant = partial(quantization.FakeQuantLinear, momentum=p.range_momentum, weight_bits=p.weight_bits)
    masks.mask_linears(student, pruned, fake_quant)
    masks.lock(student)
    batches = task.batches(p, seed=common.seed)
    steps = batches.steps(p.epochs)
    quantization.calibrate(student, map(batches, range(p.calibration_batches)), engine=engine)
    quantization.settle(student)
    calibrated = task.score(student, "validation")

    task.fit(
        student,
        batches,
        distilled_loss(
            task.kind,
            mentor,
            temperature=p.temperature,
            soft_ratio=p.soft_ratio,
            hidden_weight=p.hidden_weight,
            attention_weight=p.attention_weight,
        ),
        recipe=p,
        steps=steps,
        before_step=quantization.aware(
            student, steps=steps, begin_ratio=p.begin_ratio, freeze_ranges_ratio=p.freeze_ranges_ratio
        ),
        log=log,
        name=f"quantize {item}",
        checkpoint=log.scratch / "state.safetensors",
    )
    quantization.settle(student)
    score = task.score(student, "validation")
    ranges = quantization.ranges(student)
    student.config.weight_bits = p.weight_bits  # beside the ranges: what the weights' grid is
    student.config.pruned = pruned  # as every model of this pattern says, also one that begins dense
    masks.bake(student)
    pattern = masks.zeros(student, pruned)
    masks.check_pattern(given, pattern)
    checkpoint.save(student, task.tokenizer, model)
    checkpoint.save_ranges(ranges, model)
    log.write_history(history)
    return {"validation_score": score, "ptq_validation_score": calibrated, "sparsity": masks.sparsity(pattern)}


if __name__ == "__main__":
    launch(run)
