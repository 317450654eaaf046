"""Teacher preparation: the dense LM is optimised on the corpus that the student will be pruned on.

reads   base     a pre-trained encoder, with or without an MLM head  fetch
        tokens   token blocks, int32[blocks, length]                 prepare_corpus
                 or segment pairs, which are also asked for what follows
writes  model    dense masked LM: teacher and start of the student
        history  loss by step
source  Zafrir et al. 2021, arXiv:2111.05754, "teacher preparation"
cost    default profile: see README, "What it costs"
"""

from functools import partial

from pipeline.params.sections import Common, PrepareTeacher
from pipeline.stage import Dep, Log, Metrics, Out, Record, launch
from pruneonce.engine import accelerator
from pruneonce.language import corpus, masked_lm
from pruneonce.models import checkpoint
from pruneonce.training import loop, schedules


def run(
    base: Dep, tokens: Dep, model: Out, history: Record, *, common: Common, prepare_teacher: PrepareTeacher, log: Log
) -> Metrics:
    p = prepare_teacher
    engine = accelerator(common, micro_batches=p.micro_batches)
    tokenizer = checkpoint.load_tokenizer(base)
    load = checkpoint.load_masked_lm if p.weights == "pretrained" else checkpoint.random_masked_lm
    train = corpus.read_blocks(tokens / "train.arrow")
    teacher = load(base, attention=common.attention, dropout=p.dropout, columns=train.column_names)
    if p.gradient_checkpointing:
        teacher.gradient_checkpointing_enable({"use_reentrant": False})
    batches = partial(corpus.MaskedBlocks, tokenizer=tokenizer, batch_size=p.batch_size, probability=p.masking_probability)
    learned, held_out = (
        batches(blocks, seed=common.seed) for blocks in (train, corpus.read_blocks(tokens / "held_out.arrow"))
    )
    masked_lm.check_masked(learned, limit=p.steps, part="train")
    masked_lm.check_masked(held_out, limit=p.held_out_batches, part="held-out")

    loop.fit(
        teacher,
        learned,
        masked_lm.hard_loss,
        engine=engine,
        learning_rate=partial(schedules.linear_decay, steps=p.steps, warmup=p.warmup_steps, peak=p.learning_rate),
        steps=p.steps,
        weight_decay=p.weight_decay,
        clip_norm=p.clip_norm,
        seed=common.seed,
        log=log,
        name="prepare_teacher",
        checkpoint=log.scratch / "state.safetensors",
    )
    checkpoint.save(teacher, tokenizer, model)
    log.write_history(history)
    return masked_lm.held_out(teacher, held_out, engine=engine, limit=p.held_out_batches)


if __name__ == "__main__":
    launch(run)
