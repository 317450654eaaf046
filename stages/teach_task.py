"""The dense LM learns the task: teacher of the sparse model, and the dense baseline it is compared with.

reads   base     dense masked LM                                prepare_teacher
        splits   tokenised train, validation, test              prepare_task
writes  model    dense task model
        history  loss by step
"""

import sys

from pipeline.params.sections import Common, TeachTask
from pipeline.stage import Dep, Item, Log, Metrics, Out, Record, launch
from pruneonce.engine import accelerator
from pruneonce.models import checkpoint
from pruneonce.training import chance
from pruneonce.training.task import Task, hard_loss


def run(
    item: Item, base: Dep, splits: Dep, model: Out, history: Record, *, common: Common, teach_task: TeachTask, log: Log
) -> Metrics:
    p = teach_task
    engine = accelerator(common, micro_batches=p.micro_batches)
    task = Task.read(splits, base, engine)
    teacher = task.model(base, attention=common.attention, dropout=p.dropout, **task.kind.config)
    batches = task.batches(p, seed=common.seed)

    task.fit(
        teacher,
        batches,
        hard_loss(task.kind),
        recipe=p,
        steps=batches.steps(p.epochs),
        log=log,
        name=f"teach_task {item}",
        checkpoint=log.scratch / "state.safetensors",
    )
    checkpoint.save(teacher, task.tokenizer, model)
    log.write_history(history)
    score, by_chance = chance.scores(task, teacher, "validation", seed=common.seed)
    if score <= by_chance and engine.is_main_process:
        print(
            f"\nteach_task {item}: warning: expected a teacher that has learned the task, found {task.kind.metric} "
            f"{score:.4f} on validation, and {by_chance:.4f} for its answers dealt out to the rows at random. What follows "
            f"learns from it: change epochs or learning_rate in tasks.{item}.teach_task, or look at the labels.",
            file=sys.stderr,
        )
    return {"validation_score": score, "chance_score": by_chance}


if __name__ == "__main__":
    launch(run)
