"""Teacher preparation: the dense LM is optimised on the corpus on which the student will be pruned.

reads   base_folder   a pre-trained encoder, with or without an MLM head   fetch
        tokens        token blocks, int32[blocks, length], or segment pairs for next-sentence prediction too
                                                                           prepare_corpus
writes  model_folder  dense masked LM: the teacher, and the start of the student
        history       loss by step
source  Zafrir et al. 2021, arXiv:2111.05754, "teacher preparation"
"""

from functools import partial

from pipeline.history import Log
from pipeline.params.sections import Common, PrepareTeacher
from pipeline.stage import Dep, Metrics, Out, Record, launch
from pruneonce.engine import accelerator
from pruneonce.language import masked_lm
from pruneonce.models import checkpoint
from pruneonce.training import loop, schedules


def run(
    base_folder: Dep,
    tokens: Dep,
    model_folder: Out,
    history: Record,
    *,
    common: Common,
    prepare_teacher: PrepareTeacher,
    log: Log,
) -> Metrics:
    p = prepare_teacher
    engine = accelerator(common, micro_batches=p.micro_batches)
    tokenizer = checkpoint.load_tokenizer(base_folder)
    train, held_out = masked_lm.read_batches(tokens, tokenizer, p, train_seed=common.seed, held_out_seed=common.seed)
    load = {"pretrained": checkpoint.load_masked_lm, "random": checkpoint.random_masked_lm}[p.weights]
    teacher = load(base_folder, attention=common.attention, dropout=p.dropout, columns=train.columns)
    if p.gradient_checkpointing:
        teacher.gradient_checkpointing_enable({"use_reentrant": False})

    loop.fit(
        teacher,
        train,
        masked_lm.hard_loss,
        engine=engine,
        learning_rate=partial(schedules.linear_decay, steps=p.steps, warmup=p.warmup_steps, peak=p.learning_rate),
        steps=p.steps,
        weight_decay=p.weight_decay,
        clip_norm=p.clip_norm,
        seed=common.seed,
        log=log,
        name="prepare_teacher",
        checkpoints=log.checkpoints(),
    )
    checkpoint.save(teacher, tokenizer, model_folder)
    log.write_history(history)
    return masked_lm.held_out(teacher, held_out, engine=engine, limit=p.held_out_batches)


if __name__ == "__main__":
    launch(run)
