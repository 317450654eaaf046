"""The sparse LM learns the task from its dense teacher, its zeros locked.

reads   sparse   sparse masked LM                               sparsify
        teacher  dense task model                               teach_task
        splits   tokenised train, validation, test              prepare_task
writes  model    sparse task model, every zero still in place
        history  losses by step
source  Zafrir et al. 2021, arXiv:2111.05754, "pattern-lock" and "transfer to a task"
"""

from pipeline.params.sections import Common, Finetune
from pipeline.stage import Dep, Item, Log, Metrics, Out, Record, launch
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
    finetune: Finetune,
    log: Log,
) -> Metrics:
    p = finetune
    engine = accelerator(common, micro_batches=p.micro_batches)
    task = Task.read(splits, teacher, engine)
    mentor = task.teacher(teacher, attention=common.attention)
    student = checkpoint.load_sparse_task_model(sparse, mentor, attention=common.attention, dropout=p.dropout)
    student = student.to(engine.device)
    pruned = checkpoint.load_pruned(sparse)
    given = masks.zeros(student, pruned)
    masks.mask_linears(student, pruned)
    masks.lock(student)
    batches = task.batches(p, seed=common.seed)

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
        steps=batches.steps(p.epochs),
        log=log,
        name=f"finetune {item}",
        checkpoint=log.scratch / "state.safetensors",
    )
    masks.bake(student)
    pattern = masks.zeros(student, pruned)
    masks.check_pattern(given, pattern)
    checkpoint.save(student, task.tokenizer, model)
    log.write_history(history)
    return {"validation_score": task.score(student, "validation"), "sparsity": masks.sparsity(pattern)}


if __name__ == "__main__":
    launch(run)
