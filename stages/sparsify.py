"""Student pruning: the student relearns the corpus from its dense self while its weights are pruned away.

reads   teacher_folder  dense masked LM                            prepare_teacher
        tokens          token blocks, int32[blocks, length]        prepare_corpus
writes  model_folder    the same architecture; pruned weights are exactly 0.0
        history         losses and sparsity by step
source  Zafrir et al. 2021, arXiv:2111.05754, "student pruning"
"""

from functools import partial

from pipeline.history import Log
from pipeline.params.sections import Common, Sparsify
from pipeline.stage import Dep, Metrics, Out, Record, launch
from pruneonce.engine import accelerator
from pruneonce.language import masked_lm
from pruneonce.language.likeness import likeness
from pruneonce.models import checkpoint
from pruneonce.sparsity import masks, matrices
from pruneonce.sparsity.criterion import Calibration
from pruneonce.sparsity.gradual import GradualPruning
from pruneonce.training import loop, schedules


def run(
    teacher_folder: Dep, tokens: Dep, model_folder: Out, history: Record, *, common: Common, sparsify: Sparsify, log: Log
) -> Metrics:
    p = sparsify
    engine = accelerator(common, micro_batches=p.micro_batches)
    tokenizer = checkpoint.load_tokenizer(teacher_folder)
    # seed + 1: another order and other masks than the teacher learned from in `prepare_teacher`.
    train, held_out = masked_lm.read_batches(tokens, tokenizer, p, train_seed=common.seed + 1, held_out_seed=common.seed)
    load = partial(checkpoint.load_masked_lm, teacher_folder, attention=common.attention, columns=train.columns)
    teacher = load(dropout=0.0).eval().requires_grad_(False).to(engine.device)
    student = load(dropout=p.dropout).to(engine.device)
    if p.gradient_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    engine.print(matrices.table(matrices.matrices(student, p.prunable)))
    pruning = GradualPruning(student, p, Calibration(sample=train, batches=p.calibration_batches, engine=engine))

    loop.fit(
        student,
        train,
        masked_lm.distilled_loss(teacher, p.distillation, soft_positions=masked_lm.SOFT_POSITIONS[p.soft_positions]),
        engine=engine,
        learning_rate=schedules.of_pruning(p),
        steps=p.steps,
        weight_decay=p.weight_decay,
        clip_norm=p.clip_norm,
        seed=common.seed,
        before_step=pruning.before_step,
        log=log,
        name="sparsify",
        checkpoints=log.checkpoints(),
    )
    pattern = pruning.finish()
    student.config.pruned = list(pattern)  # the layers whose zeros all further stages lock
    checkpoint.save(student, tokenizer, model_folder)
    log.write_history(history)
    scores = likeness(student, teacher, held_out.unmasked().first(p.held_out_batches), engine=engine)
    if p.masking_probability:
        scores |= masked_lm.held_out(student, held_out, engine=engine, limit=p.held_out_batches)
    return {**scores, "sparsity": masks.sparsity(pattern)}


if __name__ == "__main__":
    launch(run)
