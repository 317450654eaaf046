"""The dense LM learns the task: teacher of the sparse model, and the dense baseline it is compared with.

reads   base     dense masked LM                                prepare_teacher
        splits   tokenised train, validation, test              prepare_task
writes  model    dense task model
        history  loss by step
"""

import sys
from functools import partial

from pipeline.params import Common, TeachTask
from pipeline.stage import Dep, Item, Log, Metrics, Out, Record, main
from pruneonce import chance, checkpoint, kinds, schedules, tasks, training


def run(
    item: Item, base: Dep, splits: Dep, model: Out, history: Record, *, common: Common, teach_task: TeachTask, log: Log
) -> Metrics:
    p = teach_task
    engine = training.accelerator(common, micro_batches=p.micro_batches)
    tokenizer = checkpoint.load_tokenizer(base)
    kind = kinds.load(splits)
    teacher = checkpoint.load_task_model(
        kind.architecture, base, attention=common.attention, dropout=p.dropout, **kind.config
    )
    train, validation = (tasks.read_split(splits / f"{name}.arrow") for name in ("train", "validation"))
    batches = tasks.Batches(train, kind, tokenizer, batch_size=p.batch_size, max_tokens=p.max_tokens, seed=common.seed)
    steps = batches.steps(p.epochs)

    training.fit(
        teacher,
        batches,
        kinds.hard_loss(kind),
        engine=engine,
        learning_rate=partial(
            schedules.linear_decay, steps=steps, warmup=round(p.warmup_ratio * steps), peak=p.learning_rate
        ),
        steps=steps,
        weight_decay=p.weight_decay,
        clip_norm=p.clip_norm,
        seed=common.seed,
        log=log,
        name=f"teach_task {item}",
        checkpoint=log.scratch / "state.safetensors",
    )
    checkpoint.save(teacher, tokenizer, model)
    log.write_history(history)
    score, by_chance = chance.scores(teacher, kind, validation, tokenizer, engine=engine, seed=common.seed)
    if score <= by_chance and engine.is_main_process:
        print(
            f"\nteach_task {item}: warning: expected a teacher that has learned the task, found {kind.metric} {score:.4f} "
            f"on validation, and {by_chance:.4f} for its answers dealt out to the rows at random. What follows learns from "
            f"it: change epochs or learning_rate in tasks.{item}.teach_task, or look at the labels.",
            file=sys.stderr,
        )
    return {"validation_score": score, "chance_score": by_chance}


if __name__ == "__main__":
    main(run)
