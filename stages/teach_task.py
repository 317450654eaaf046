"""The dense LM learns the task: teacher of the sparse model, and the dense baseline it is compared with.

reads   base_folder   dense masked LM                           prepare_teacher
        splits        tokenised train, validation, test         prepare_task
                      and a dense model that can do the task already, such as a sentence encoder
writes  model_folder  dense task model
        history       loss by step
"""

import sys

from pipeline.history import Log
from pipeline.params.sections import Common, TeachTask
from pipeline.stage import Dep, Item, Metrics, Out, Record, launch
from pruneonce.engine import accelerator
from pruneonce.models import checkpoint
from pruneonce.training import chance
from pruneonce.training.task import Task, hard_loss


def run(
    item: Item,
    base_folder: Dep,
    splits: Dep,
    model_folder: Out,
    history: Record,
    *,
    common: Common,
    teach_task: TeachTask,
    log: Log,
) -> Metrics:
    p = teach_task
    engine = accelerator(common, micro_batches=p.micro_batches)
    task = Task.read(splits, base_folder, engine)
    start, epochs = (base_folder, p.epochs) if task.kind.dense is None else (splits / task.kind.dense, 0)
    teacher = task.model(start, attention=common.attention, dropout=p.dropout, **task.kind.config)
    batches = task.batches(p, seed=common.seed)

    task.fit(
        teacher,
        batches,
        hard_loss(task.kind),
        recipe=p,
        steps=batches.steps(epochs),
        log=log,
        name=f"teach_task {item}",
        checkpoints=log.checkpoints(),
    )
    checkpoint.save(teacher, task.tokenizer, model_folder)
    log.write_history(history)
    score, chance_score = chance.scores(task, teacher, "validation", seed=common.seed)
    if score <= chance_score:
        engine.print(
            f"\nteach_task {item}: warning: expected a teacher that has learned the task, found {task.kind.metric} "
            f"{score:.4f} on validation, and {chance_score:.4f} for its answers in random order. All further models of this "
            f"task learn from it: change epochs or learning_rate in tasks.{item}.teach_task, or look at the labels.",
            file=sys.stderr,
        )
    return {"validation_score": score, "chance_score": chance_score}


if __name__ == "__main__":
    launch(run)
