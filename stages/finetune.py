"""The sparse LM learns the task from its dense teacher, its zeros locked.

reads   sparse_folder   sparse masked LM                        sparsify
        teacher_folder  dense task model                        teach_task
        splits          tokenised train, validation, test       prepare_task
writes  model_folder    sparse task model, every zero in place
        history         losses by step
source  Zafrir et al. 2021, arXiv:2111.05754, "pattern-lock" and "transfer to a task"
"""

from pipeline.history import Log
from pipeline.params.sections import Common, Finetune
from pipeline.stage import Dep, Item, Metrics, Out, Record, launch
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
    finetune: Finetune,
    log: Log,
) -> Metrics:
    p = finetune
    engine = accelerator(common, micro_batches=p.micro_batches)
    task = Task.read(splits, teacher_folder, engine)
    teacher = task.teacher(teacher_folder, attention=common.attention)
    student = task.student(sparse_folder, teacher, attention=common.attention, dropout=p.dropout)
    masks.mask_linears(student, checkpoint.load_pruned(sparse_folder, student))
    pattern = masks.lock(student)
    batches = task.distilled_batches(p, seed=common.seed)

    task.distil(
        student,
        teacher,
        batches,
        recipe=p,
        steps=batches.steps(p.epochs),
        log=log,
        name=f"finetune {item}",
        checkpoints=log.checkpoints(),
    )
    zeros = masks.bake(student)
    masks.check_pattern(pattern, zeros)
    checkpoint.save(student, task.tokenizer, model_folder)
    log.write_history(history)
    return {"validation_score": task.score(student, "validation"), "sparsity": masks.sparsity(zeros)}


if __name__ == "__main__":
    launch(run)
