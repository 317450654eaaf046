"""The sparse LM learns the task from its dense teacher, its zeros locked.

reads   sparse   sparse masked LM                               sparsify
        teacher  dense task model                               teach_task
        splits   tokenised train, validation, test              prepare_task
writes  model    sparse task model, every zero still in place
        history  losses by step
source  Zafrir et al. 2021, arXiv:2111.05754, "pattern-lock" and "transfer to a task"
"""

from functools import partial

from pipeline.params import Common, Finetune
from pipeline.stage import Dep, Item, Log, Metrics, Out, Record, main
from pruneonce import checkpoint, kinds, pruning, schedules, tasks, training


def run(
    item: Item,
    sparse: Dep,
    teacher: Dep,
    splits: Dep,
    model: Out,
    history: Record,
    *,
    common: Common,
    finetune: Finetune,
    log: Log,
) -> Metrics:
    p = finetune
    engine = training.accelerator(common, micro_batches=p.micro_batches)
    tokenizer = checkpoint.load_tokenizer(teacher)
    kind = kinds.load(splits)
    mentor = checkpoint.load_task_model(kind.architecture, teacher, attention=common.attention, dropout=0.0)
    mentor = mentor.eval().requires_grad_(False).to(engine.device)
    student = checkpoint.load_sparse_task_model(sparse, mentor, attention=common.attention, dropout=p.dropout).to(
        engine.device
    )
    pruned = checkpoint.load_pruned(sparse)
    given = pruning.zeros(student, pruned)
    pruning.mask_linears(student, pruned)
    pruning.lock(student)
    train, validation = (tasks.read_split(splits / f"{name}.arrow") for name in ("train", "validation"))
    batches = tasks.Batches(train, kind, tokenizer, batch_size=p.batch_size, max_tokens=p.max_tokens, seed=common.seed)
    steps = batches.steps(p.epochs)

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
        log=log,
        name=f"finetune {item}",
        checkpoint=log.scratch / "state.safetensors",
    )
    pruning.bake(student)
    pattern = pruning.zeros(student, pruned)
    pruning.check_pattern(given, pattern)
    checkpoint.save(student, tokenizer, model)
    log.write_history(history)
    score = kinds.score(student, kind, validation, tokenizer, engine=engine)
    return {"validation_score": score, "sparsity": pruning.sparsity(pattern)}


if __name__ == "__main__":
    main(run)
