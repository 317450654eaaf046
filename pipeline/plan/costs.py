"""What the stages of a profile that train would take: steps, tokens, FLOPs, memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.params.document import Params
from pipeline.params.sections import Common, Distilled, MaskedLM, PrepareTeacher, Sparsify, TaskTraining
from pipeline.plan.inventory import Source
from pruneonce.errors import DataError
from pruneonce.models import step_costs
from pruneonce.models.step_costs import Piece, Shape

BYTES_A_TOKEN = 5  # of English, in WordPiece: 4.9 of 20 newsgroups, 5.0 of R52
SPLITS = ("train", "validation", "test")
TASK_STAGES = ("teach_task", "finetune", "quantize")


@dataclass(frozen=True)
class Rate:
    """What the machine does. tflops: model TFLOP/s that one GPU sustains; tokens: a second, on one GPU. None: not said."""

    gpus: int
    tflops: float | None
    tokens: float | None

    def seconds(self, work: "Work") -> float | None:
        """Of a stage's training alone; the GPUs share it without loss."""
        if self.tflops:
            return work.flops / (self.tflops * 1e12 * self.gpus)
        return work.tokens / (self.tokens * self.gpus) if self.tokens else None


@dataclass(frozen=True)
class Work:
    """One stage that trains. tokens: at most, every row as long as it may be. memory: of a device, bytes by part."""

    name: str
    steps: int
    tokens: float
    flops: float
    rows: int
    length: int
    memory: Mapping[str, float]
    uneven: bool  # the devices get different numbers of rows


def rows_of(task: str, p: Params, sources: Mapping[str, Source]) -> int | None:
    """Rows that the task trains on, before duplicates are dropped; None if nobody knows yet.

    Raises DataError where a split that training needs, or a column, is missing.
    """
    section: Any = p.section("prepare_task", task)
    of = sources[section.source]
    for needed in ("train", *section.further_tests):
        if of.lacks(needed):
            raise DataError(
                f"expected {needed} rows for task {task!r} in source {section.source!r}, found splits {of.splits()}."
            )
    columns = [section.text, section.label, *([section.pair] if section.pair else [])]
    given = [split for split in SPLITS if split in of.splits()]
    counts = {split: of.rows(split, columns, skip_rows=section.skip_rows) for split in given}
    train = counts.get("train")
    if train is None:
        return None
    left = 1 - sum(
        r for split, r in (("validation", section.validation_ratio), ("test", section.test_ratio)) if split not in given
    )
    if round(train * left) < 1:
        raise DataError(f"expected train rows for task {task!r}, found {train} rows in source {section.source!r}.")
    return round(train * left)


def corpus_bytes(p: Params, sources: Mapping[str, Source]) -> float | None:
    """Bytes of the corpus' sources, the share of the files it reads; None if nobody knows yet. Raises DataError."""
    here, cards = 0.0, dict[str, int | None]()  # a card counts all splits of its source
    for d in p.prepare_corpus.documents:
        of = sources[d.source]
        of.rows(d.split, [d.column], skip_rows=d.skip_rows)
        if of.files:
            here += step_costs.text_bytes(of.by_split()[d.split], d.column)
        else:
            cards[d.source] = of.bytes
    known = [size for size in cards.values() if size is not None]
    return here + sum(known) if len(known) == len(cards) else None


def corpus_tokens(p: Params, size: float | None) -> float | None:
    """Tokens to train on, about."""
    if size is None:
        return p.prepare_corpus.max_tokens
    found = size / BYTES_A_TOKEN * (1 - p.prepare_corpus.held_out_ratio)
    return min(found, p.prepare_corpus.max_tokens or found)


def pre_training(p: Params, s: Shape, gpus: int) -> Iterator[Work]:
    """prepare_teacher and sparsify."""
    length = p.prepare_corpus.block_tokens
    sections: tuple[PrepareTeacher | Sparsify, ...] = (p.prepare_teacher, p.sparsify)
    for name, section in zip(("prepare_teacher", "sparsify"), sections, strict=True):
        tokens = section.batch_size * length
        soft = isinstance(section, Sparsify) and section.distillation.soft_weight > 0
        everywhere = isinstance(section, Sparsify) and soft and section.soft_positions == "all"
        read = tokens * (1.0 if everywhere else section.masking_probability)
        teacher = (read if soft else 0.0) if isinstance(section, Sparsify) else None
        flops = step_costs.step_flops(s, tokens=tokens, length=length, read=read, teacher_read=teacher)
        rows, uneven = _share(section.batch_size, section.micro_batches, gpus)
        piece = Piece(
            rows=rows,
            length=length,
            read=read * rows / section.batch_size,
            soft=soft,
            hidden=isinstance(section, Sparsify) and section.distillation.hidden_weight > 0,
            quantized=False,
            checkpointing=section.gradient_checkpointing,
            **_engine(p.common, s, section, gpus),
        )
        memory = step_costs.memory(s, piece, teacher=teacher is not None)
        yield Work(name, section.steps, section.steps * tokens, section.steps * flops, rows, length, memory, uneven)


def task_training(p: Params, s: Shape, gpus: int, training_rows: Mapping[str, int | None]) -> Iterator[Work]:
    """The three stages of every task whose rows are known."""
    for task, count in training_rows.items():
        for stage in TASK_STAGES if count else ():
            section: Any = p.section(stage, task)
            teacher = isinstance(section, Distilled)
            steps = max(section.epochs > 0, round(section.epochs * -(-(count or 0) // section.batch_size)))
            tokens, length = section.batch_size * section.max_tokens, section.max_tokens
            flops = step_costs.step_flops(s, tokens=tokens, length=length, read=0, teacher_read=0 if teacher else None)
            rows, uneven = _share(section.batch_size, section.micro_batches, gpus)
            piece = Piece(
                rows=rows,
                length=length,
                read=0,
                soft=False,
                hidden=teacher and section.distillation.hidden_weight > 0,
                quantized=stage == "quantize",
                checkpointing=False,
                **_engine(p.common, s, section, gpus),
            )
            memory = step_costs.memory(s, piece, teacher=teacher)
            yield Work(f"{stage}@{task}", steps, steps * tokens, steps * flops, rows, length, memory, uneven)


def _share(batch: int, micro: int, gpus: int) -> tuple[int, bool]:
    """Rows that a device computes at a time, and whether some have fewer."""
    return -(-batch // (micro * gpus)), batch % (micro * gpus) != 0


def _engine(common: Common, s: Shape, section: MaskedLM | TaskTraining, gpus: int) -> dict[str, Any]:
    """The part of a Piece that is the same for every stage. `auto` is planned as bf16: what a GPU multiplies."""
    drops = s.dropout if section.dropout is None else section.dropout > 0
    eager = common.attention == "eager"  # the fused kernels of sdpa keep no probabilities, and draw dropout again
    return {
        "tile": step_costs.tile(common.device),
        "element": 4 if common.precision == "fp32" else 2,
        "probabilities": (3 if drops else 1) if eager else 0,
        "dropouts": 2 if drops else 0,
        "accumulates": section.micro_batches > 1,
        "processes": gpus,
    }
