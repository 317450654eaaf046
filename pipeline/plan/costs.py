"""The costs of the stages that train, for a profile: steps, tokens, FLOPs, memory."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from pipeline.params.document import TASK_STAGES, Params
from pipeline.params.sections import Common, Distillation, MaskedLM, Quantize, TaskTraining
from pipeline.plan.inventory import Source, text_bytes
from pruneonce import step_costs
from pruneonce.errors import DataError
from pruneonce.step_costs import ForwardFlops, Piece, Shape
from pruneonce.tasks import batches
from pruneonce.tasks.examples import SPLITS
from pruneonce.tasks.kinds import KINDS

BYTES_PER_TOKEN = 5  # of English text in WordPiece, about: see docs/design-notes.md
TRAINING_STAGES = tuple(name for name, section in TASK_STAGES.items() if issubclass(section, TaskTraining))


@dataclass(frozen=True)
class Model:
    """The model of a profile."""

    shape: Shape
    forward: Callable[..., ForwardFlops]  # FLOPs of a batch: forward(rows=, length=)


@dataclass(frozen=True)
class Rate:
    """The speed of the machine; None: not known."""

    gpus: int
    tflops: float | None  # model TFLOP/s that one GPU sustains
    tokens: float | None  # tokens a second on one GPU

    def seconds(self, work: "Work") -> float | None:
        """Seconds of a stage's training alone; the GPUs share the work without loss."""
        if self.tflops:
            return work.flops / (self.tflops * 1e12 * self.gpus)
        return work.tokens / (self.tokens * self.gpus) if self.tokens else None


@dataclass(frozen=True)
class Work:
    """One stage that trains."""

    name: str
    steps: int
    tokens: float  # at most: every row as long as it may be
    flops: float
    rows: int  # that a device computes at a time
    length: int
    memory: Mapping[str, float]  # bytes of a device by part
    uneven: bool  # the devices get different numbers of rows


def rows_of(task: str, p: Params, sources: Mapping[str, Source]) -> int | None:
    """Rows that the task trains on, before duplicates are dropped; None if they are not known yet.

    Raises DataError where a split that training needs, or a column, is missing.
    """
    section: Any = p.section("prepare_task", task)
    source = sources[section.source]
    for split in ("train", *section.further_tests):
        if source.lacks(split):
            raise DataError(
                f"expected {split} rows for task {task!r} in source {section.source!r}, found splits {source.splits()}."
            )
    columns = [column for column in (section.text, section.label, section.pair) if column]
    present = [split for split in SPLITS if split in source.splits()]
    counts = {split: source.rows(split, columns, skip_rows=section.skip_rows) for split in present}
    train = counts.get("train")
    if train is None:
        return None
    taken = {"validation": section.validation_ratio, "test": section.test_ratio}  # from train, where there is no such split
    left = round(train * (1 - sum(ratio for split, ratio in taken.items() if split not in present)))
    if left < 1:
        raise DataError(f"expected train rows for task {task!r}, found {train} rows in source {section.source!r}.")
    return left


def corpus_bytes(p: Params, sources: Mapping[str, Source]) -> float | None:
    """Bytes of the files that the corpus reads, or of the whole source before it is fetched; None if not known yet.

    Raises DataError for a missing split or column.
    """
    local, cards = 0.0, dict[str, int | None]()  # a card counts all splits of its source
    for d in p.prepare_corpus.documents:
        source = sources[d.source]
        source.rows(d.split, [d.column], skip_rows=d.skip_rows)
        if source.files:
            local += text_bytes(source.by_split()[d.split], d.column)
        else:
            cards[d.source] = source.bytes
    known = [size for size in cards.values() if size is not None]
    return local + sum(known) if len(known) == len(cards) else None


def corpus_tokens(p: Params, size: float | None) -> float | None:
    """About how many tokens there are to train on. size: bytes of the corpus."""
    if size is None:
        return p.prepare_corpus.max_tokens
    tokens = size / BYTES_PER_TOKEN * (1 - p.prepare_corpus.held_out_ratio)
    return min(tokens, p.prepare_corpus.max_tokens or tokens)


def pre_training(p: Params, model: Model, gpus: int) -> Iterator[Work]:
    """prepare_teacher and sparsify."""
    length, sparsify = p.prepare_corpus.block_tokens, p.sparsify
    everywhere = sparsify.distillation.soft_weight > 0 and sparsify.soft_positions == "all"
    for name, section, share in (
        ("prepare_teacher", p.prepare_teacher, p.prepare_teacher.masking_probability),
        ("sparsify", sparsify, 1.0 if everywhere else sparsify.masking_probability),
    ):
        read = section.batch_size * length * share
        yield _work(name, section, p.common, model, gpus, steps=section.steps, length=length, read=read)


def task_training(p: Params, model: Model, gpus: int, training_rows: Mapping[str, int | None]) -> Iterator[Work]:
    """The three stages of every task whose rows are known."""
    for task, rows in training_rows.items():
        for stage in TRAINING_STAGES if rows else ():
            section: Any = p.section(stage, task)
            count = steps(stage, task, p, rows or 0)
            yield _work(f"{stage}@{task}", section, p.common, model, gpus, steps=count, length=section.max_tokens, read=0.0)


def steps(stage: str, task: str, p: Params, rows: int) -> int:
    """The steps of a stage on a task with so many rows to train on; 0 where the dense model does the task already."""
    training, prepared = cast(Any, p.section(stage, task)), cast(Any, p.section("prepare_task", task))
    if stage == "teach_task" and KINDS[prepared.kind].dense is not None:
        return 0
    return batches.steps(training.epochs, encoded(rows, prepared.kind, prepared.pair), training.batch_size)


def encoded(rows: int, kind: str, pair: str | None) -> int:
    """How many rows the model is given: an embedding reads each text of a pair alone."""
    return 2 * rows if pair is not None and kind == "embedding" else rows


def _work(name: str, section: Any, common: Common, model: Model, gpus: int, *, steps: int, length: int, read: float) -> Work:
    """The work of one stage. read: positions of a batch whose logits the loss reads, 0 for a task.

    Precision `auto` counts as bf16, in which a GPU multiplies.
    """
    batch, pieces = section.batch_size, section.micro_batches * gpus
    rows = -(-batch // pieces)
    losses: Distillation | None = getattr(section, "distillation", None)  # only a student has them
    soft = losses is not None and losses.soft_weight > 0 and read > 0
    drops = model.shape.dropout if section.dropout is None else section.dropout > 0
    eager = common.attention == "eager"  # the fused kernels of sdpa keep no probabilities, and draw dropout again
    piece = Piece(
        rows=rows,
        length=length,
        read=read * rows / batch,
        tile=step_costs.tile(common.device),
        element=4 if common.precision == "fp32" else 2,
        probabilities=(3 if drops else 1) if eager else 0,
        dropouts=2 if drops else 0,
        teacher=losses is not None,
        soft=soft,
        hidden=losses is not None and losses.hidden_weight > 0,
        quantized=isinstance(section, Quantize),
        checkpointing=isinstance(section, MaskedLM) and section.gradient_checkpointing,
        accumulates=section.micro_batches > 1,
        processes=gpus,
    )
    teacher_read = None if losses is None else read if soft else 0.0
    flops = step_costs.step_flops(model.forward(rows=batch, length=length), read=read, teacher_read=teacher_read)
    return Work(
        name=name,
        steps=steps,
        tokens=steps * batch * length,
        flops=steps * flops,
        rows=rows,
        length=length,
        memory=step_costs.memory(model.shape, piece),
        uneven=batch % pieces != 0,
    )
