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

from pipeline.params import Common, Quantize
from pipeline.stage import Dep, Item, Log, Metrics, Out, Record, main
from pruneonce import checkpoint, kinds, pruning, quantization, schedules, tasks, training


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
    engine = training.accelerator(common, micro_batches=p.micro_batches)
    tokenizer = checkpoint.load_tokenizer(teacher)
    kind = kinds.load(splits)
    mentor = checkpoint.load_task_model(kind.architecture, teacher, attention=common.attention, dropout=0.0)
    mentor = mentor.eval().requires_grad_(False).to(engine.device)
    start = {"sparse": sparse, "dense": teacher}[p.start]
    student = checkpoint.load_task_model(kind.architecture, start, attention=common.attention, dropout=p.dropout)
    student = student.to(engine.device)
    pruned = checkpoint.load_pruned(sparse)
    given = pruning.zeros(student, pruned)
    fake_quant = partial(quantization.FakeQuantLinear, momentum=p.range_momentum, weight_bits=p.weight_bits)
    pruning.mask_linears(student, pruned, fake_quant)
    pruning.lock(student)
    train, validation = (tasks.read_split(splits / f"{name}.arrow") for name in ("train", "validation"))
    batches = tasks.Batches(train, kind, tokenizer, batch_size=p.batch_size, max_tokens=p.max_tokens, seed=common.seed)
    steps = batches.steps(p.epochs) if p.epochs else 0  # a little training takes a step at least
    quantization.calibrate(student, map(batches, range(p.calibration_batches)), engine=engine)
    quantization.observe(student, False)
    calibrated = kinds.score(student, kind, validation, tokenizer, engine=engine)

    def before_step(step: int) -> dict[str, float]:
        quantization.observe(student, step < p.freeze_ranges_ratio * steps)
        quantization.round_operands(student, step >= p.begin_ratio * steps)
        return {}

    training.fit(
        student,
        batches,
        kinds.distilled_loss(
            kind,
            mentor,
            temperature=p.temperature,
            soft_ratio=p.soft_ratio,
            hidden_weight=p.hidden_weight,
            attention_weight=p.attention_weight,
        ),
        engine=engine,
        learning_rate=partial(
            schedules.linear_decay, steps=steps, warmup=round(p.warmup_ratio * steps), peak=p.learning_rate
        ),
        steps=steps,
        weight_decay=p.weight_decay,
        clip_norm=p.clip_norm,
        seed=common.seed,
        before_step=before_step,
        log=log,
        name=f"quantize {item}",
        checkpoint=log.scratch / "state.safetensors",
    )
    quantization.observe(student, False)
    quantization.round_operands(student, True)
    score = kinds.score(student, kind, validation, tokenizer, engine=engine)
    ranges = quantization.ranges(student)
    student.config.weight_bits = p.weight_bits  # beside the ranges: what the weights' grid is
    student.config.pruned = pruned  # as every model of this pattern says, also one that begins dense
    pruning.bake(student)
    pattern = pruning.zeros(student, pruned)
    pruning.check_pattern(given, pattern)
    checkpoint.save(student, tokenizer, model)
    checkpoint.save_ranges(ranges, model)
    log.write_history(history)
    return {"validation_score": score, "ptq_validation_score": calibrated, "sparsity": pruning.sparsity(pattern)}


if __name__ == "__main__":
    main(run)
