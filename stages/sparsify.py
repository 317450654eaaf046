"""Student pruning: the student relearns the corpus from its dense self while its weights are pruned away.

reads   teacher  dense masked LM                                   prepare_teacher
        tokens   token blocks, int32[blocks, length]               prepare_corpus
writes  model    same architecture; the pruned weights are exactly 0.0
        history  losses and sparsity by step
source  Zafrir et al. 2021, arXiv:2111.05754, "student pruning"
cost    default profile: see README, "What it costs"
"""

from collections.abc import Callable
from functools import partial

from pipeline.params.sections import Common, Sparsify
from pipeline.stage import Dep, Log, Metrics, Out, Record, launch
from pruneonce.engine import accelerator
from pruneonce.language import corpus, masked_lm
from pruneonce.models import checkpoint, matrices
from pruneonce.sparsity import gradual, masks, movement, patterns, second_order
from pruneonce.training import loop, schedules


def run(teacher: Dep, tokens: Dep, model: Out, history: Record, *, common: Common, sparsify: Sparsify, log: Log) -> Metrics:
    p = sparsify
    engine = accelerator(common, micro_batches=p.micro_batches)
    tokenizer = checkpoint.load_tokenizer(teacher)
    blocks = corpus.read_blocks(tokens / "train.arrow")
    load = partial(checkpoint.load_masked_lm, teacher, attention=common.attention, columns=blocks.column_names)
    mentor = load(dropout=0.0).eval().requires_grad_(False).to(engine.device)
    student = load(dropout=p.dropout).to(engine.device)
    if p.gradient_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    engine.print(matrices.table(matrices.matrices(student, p.prunable)))
    wrap = movement.ScoredLinear if p.criterion == "movement" else masks.MaskedLinear
    linears = masks.mask_linears(student, p.prunable, wrap)
    pattern = patterns.fitting(p.pattern, linears)
    select = patterns.SCOPES[p.scope](pattern)
    batches = partial(corpus.MaskedBlocks, tokenizer=tokenizer, batch_size=p.batch_size, probability=p.masking_probability)
    train = batches(blocks, seed=common.seed + 1)  # not the teacher's order again
    held_out = batches(corpus.read_blocks(tokens / "held_out.arrow"), seed=common.seed)
    masked_lm.check_masked(train, limit=p.steps, part="train")
    masked_lm.check_masked(held_out, limit=p.held_out_batches, part="held-out")

    ramp: dict[str, int] = {"begin": p.prune_begin_steps, "end": p.prune_end_steps}

    def sparsity(step: int) -> float:
        return gradual.cubic_sparsity(step, **ramp, initial=p.initial_sparsity, target=p.sparsity)

    due = partial(gradual.is_pruning_step, begin=p.prune_begin_steps, freeze=p.freeze_masks_steps, every=p.prune_every_steps)
    prune_by: dict[str, Callable[[float], None]] = {
        "magnitude": partial(masks.prune, student, select=select),
        "movement": partial(masks.prune, student, select=select, score=movement.score),
        "second_order": partial(
            second_order.prune, student, linears, train, batches=p.calibration_batches, engine=engine, pattern=pattern
        ),
    }
    if p.schedule == "linear":
        rate = schedules.linear_decay
    else:
        rate = partial(schedules.rewound_decay, **ramp, every=p.prune_every_steps)

    def before_step(step: int) -> dict[str, float]:
        movement.share_scores(student, engine)
        if due(step):
            prune_by[p.first_criterion if step == p.prune_begin_steps else p.criterion](sparsity(step))
        return {"sparsity": masks.masked_sparsity(student)}

    loop.fit(
        student,
        train,
        masked_lm.distilled_loss(
            mentor,
            hard_weight=p.hard_weight,
            soft_weight=p.soft_weight,
            hidden_weight=p.hidden_weight,
            attention_weight=p.attention_weight,
            temperature=p.temperature,
            everywhere=p.soft_positions == "all",
        ),
        engine=engine,
        learning_rate=partial(rate, steps=p.steps, warmup=p.warmup_steps, peak=p.learning_rate),
        steps=p.steps,
        weight_decay=p.weight_decay,
        clip_norm=p.clip_norm,
        seed=common.seed,
        before_step=before_step,
        log=log,
        name="sparsify",
        checkpoint=log.scratch / "state.safetensors",
    )
    masks.bake(student)
    zeros = masks.zeros(student, p.prunable)
    masks.check_sparsity(zeros, p.sparsity, select)
    student.config.pruned = list(zeros)  # the zeros that all further stages keep
    checkpoint.save(student, tokenizer, model)
    log.write_history(history)
    scores = masked_lm.held_out(student, held_out, engine=engine, limit=p.held_out_batches)
    return {**scores, "sparsity": masks.sparsity(zeros)}


if __name__ == "__main__":
    launch(run)
