"""The sections of the stages, one class a section. No defaults: a key that is not in the file is an error that names it."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.params.section import (
    Count,
    Name,
    NonNegative,
    Positive,
    Ratio,
    Rows,
    Runs,
    Section,
    Seed,
    Share,
    Steps,
    Threads,
)


class Common(Section):
    """What every stage shares: the model, and where and how to compute."""

    model: Name  # a source of `fetch` or `fetch_local`
    seed: Seed
    device: Literal["auto", "cpu"]  # auto: an accelerator if there is one
    precision: Literal["auto", "bf16", "fp32"]  # auto: bf16 where the processor multiplies it
    attention: Literal["eager", "sdpa"]  # the implementation in transformers; eager is the faster on CPUs
    threads: Threads  # of PyTorch


class Documents(Section):
    """One file of the corpus: each row of `column` is a document."""

    source: Name
    split: Name
    column: str
    skip_rows: Rows  # lines after the header that are not data


class PrepareCorpus(Section):
    documents: Annotated[list[Documents], Field(min_length=1)]
    block_tokens: Annotated[int, Field(ge=8)]
    held_out_ratio: Annotated[float, Field(gt=0, lt=1)]
    max_tokens: Count | None  # stop after so many training tokens; null: all
    next_sentence: bool  # blocks are segment pairs, for models with a next-sentence head; false: text without gaps
    short_ratio: Ratio  # with next_sentence: share of pairs that are short, of random length


class Training(Section):
    """What every training stage sets."""

    batch_size: Count
    micro_batches: Count  # gradients are accumulated over so many pieces of a batch
    learning_rate: Positive  # peak
    weight_decay: NonNegative
    clip_norm: Positive
    dropout: Share | None  # replaces every dropout rate of the model; null keeps them

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.batch_size % self.micro_batches:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of micro_batches {self.micro_batches}")
        return self


class MaskedLM(Training):
    """Training on masked language modelling, measured in steps."""

    steps: Count
    warmup_steps: Steps
    masking_probability: Annotated[float, Field(gt=0, lt=1)]
    gradient_checkpointing: bool  # recompute activations in the backward pass: less memory, a third more time
    held_out_batches: Count  # how many batches of held-out blocks the closing metric reads at most

    @model_validator(mode="after")
    def _warm_in_time(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"need warmup_steps < steps, found {self.warmup_steps} and {self.steps}")
        return self


class Distillation(Section):
    """The loss of a student: one weight a part, and the temperature of the soft part."""

    temperature: Positive
    hard_weight: NonNegative  # loss against the labels
    soft_weight: NonNegative  # loss against the teacher's logits
    hidden_weight: NonNegative  # relative error of the hidden states
    attention_weight: NonNegative  # KL against the teacher's attention; needs common.attention eager and dropout 0.0

    @model_validator(mode="after")
    def _one_part(self) -> Self:
        if not self.hard_weight + self.soft_weight + self.hidden_weight + self.attention_weight > 0:
            raise ValueError("need one of hard_weight, soft_weight, hidden_weight, attention_weight above 0")
        return self


class PrepareTeacher(MaskedLM):
    weights: Literal["pretrained", "random"]  # random: the source brings a configuration and a tokenizer only


class Sparsify(MaskedLM):
    prunable: str | None  # null: every linear of the layers and the pooler; or a regular expression over names
    sparsity: Share  # target fraction of zeros in every prunable matrix, or in all of them together
    initial_sparsity: Share  # the first jump, at prune_begin_steps
    pattern: Literal["unstructured", "1x4", "4x1", "2:4", "4:8"]  # outputs x inputs of a block, or N of every M inputs stay
    scope: Literal["uniform", "global"]  # where weights compete: in their matrix, or over the model
    first_criterion: Literal["magnitude", "second_order"]  # what decides at the first jump ...
    criterion: Literal["magnitude", "movement", "second_order"]  # ... and at every pruning step after it
    calibration_batches: Count  # second_order: batches whose activations are measured each time
    prune_begin_steps: Steps  # sparsity rises from here ...
    prune_end_steps: Steps  # ... to here; masks may still move ...
    freeze_masks_steps: Steps  # ... until here
    prune_every_steps: Count
    schedule: Literal["linear", "rewound"]  # of the learning rate
    soft_positions: Literal["all", "masked"]  # where the soft loss reads logits; all is the paper's
    distillation: Distillation

    @field_validator("prunable")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.prune_begin_steps <= self.prune_end_steps <= self.freeze_masks_steps < self.steps:
            raise ValueError("need prune_begin_steps <= prune_end_steps <= freeze_masks_steps < steps")
        outside = self.steps - (self.prune_end_steps - self.prune_begin_steps)  # a rewind goes to the peak times
        if self.schedule == "rewound" and outside < 3 * self.warmup_steps:  # outside / (outside - warmup): to 1.5 here
            raise ValueError(
                "need schedule linear, or steps outside of the ramp, steps - (prune_end_steps - prune_begin_steps), of at "
                f"least 3 x warmup_steps, found {outside} and {self.warmup_steps}: a rewind would go far above learning_rate"
            )
        if self.initial_sparsity > self.sparsity:
            raise ValueError(f"need initial_sparsity <= sparsity, found {self.initial_sparsity} and {self.sparsity}")
        return self

    @model_validator(mode="after")
    def _choices_agree(self) -> Self:
        kept, colon, group = self.pattern.partition(":")
        if colon and self.sparsity != 1 - int(kept) / int(group):
            raise ValueError(f"pattern {self.pattern} is sparsity {1 - int(kept) / int(group)}, found {self.sparsity}")
        if colon and self.scope == "global":
            raise ValueError(f"need scope uniform with pattern {self.pattern}: every group of a matrix has its own count")
        if "second_order" in (self.first_criterion, self.criterion) and self.scope == "global":
            raise ValueError("need scope uniform with second_order: each layer's costs are in the units of its own outputs")
        if self.criterion == "movement" and self.first_criterion == "second_order":
            raise ValueError(
                "need first_criterion magnitude with movement: what second_order prunes is set to 0, and 0 stays"
            )
        return self


# The metrics of a kind; the first one is its usual `score`. `pruneonce.tasks.kinds` computes all of them.
METRICS = {
    "classification": ("accuracy", "f1", "macro_f1", "mcc"),
    "regression": ("pearson", "spearman"),
    "multi_label": ("micro_f1", "macro_f1", "accuracy"),
    "token_classification": ("entity_f1", "token_accuracy"),
    "question_answering": ("f1", "exact_match"),
}


class PrepareTask(Section):
    source: Name
    kind: Literal["classification", "regression", "multi_label", "token_classification", "question_answering"]
    metric: str  # of METRICS
    text: str  # column; of questions and answers, the question
    pair: str | None  # column of a second text; the context of a question
    label: str  # column
    labels: Annotated[list[str], Field(min_length=2)] | None  # null: those of the training rows
    more_tests: list[Name]  # further test splits: file test-<name>.* of the source
    skip_rows: Rows
    max_tokens: Annotated[int, Field(ge=4)]
    validation_ratio: Annotated[float, Field(gt=0, lt=1)]  # of all rows, carved from train where there is no such split
    test_ratio: Annotated[float, Field(gt=0, lt=1)]  # likewise
    stride_tokens: Count  # question_answering, all of these: what a window of a long context shares with the one before
    max_answer_tokens: Count
    n_best: Count  # starts and ends of a window that are paired
    null_threshold: float | None  # no answer where it beats the best span by more; null: every question has an answer

    @property
    def further_tests(self) -> list[str]:
        """`more_tests` by the names of their splits."""
        return [f"test-{name}" for name in self.more_tests]

    @model_validator(mode="after")
    def _leaves_some(self) -> Self:
        if self.validation_ratio + self.test_ratio >= 1:
            raise ValueError("need validation_ratio + test_ratio < 1: the rest is for training")
        return self

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if self.metric not in METRICS[self.kind]:
            raise ValueError(f"metric of {self.kind} is one of {', '.join(METRICS[self.kind])}, found {self.metric!r}")
        if self.kind == "question_answering" and self.pair is None:
            raise ValueError("question_answering needs `pair`, the column of the context")
        if self.kind == "token_classification" and self.pair is not None:
            raise ValueError(f"token_classification reads one text, found pair {self.pair!r}")
        if self.kind == "question_answering" and self.stride_tokens >= self.max_tokens // 2 - 4:
            raise ValueError(f"need stride_tokens < max_tokens / 2 - 4, found {self.stride_tokens} and {self.max_tokens}")
        return self


class TaskTraining(Training):
    """Training on a task, measured in epochs."""

    epochs: Positive  # may be a fraction: half an epoch sees half of the rows
    warmup_ratio: Share
    max_tokens: Annotated[int, Field(ge=4)]  # longer texts are cut, in training only


class TeachTask(TaskTraining):
    pass


class Distilled(TaskTraining):
    """Training on a task with a dense teacher."""

    distillation: Distillation


class Finetune(Distilled):
    pass


class Quantize(Distilled):
    start: Literal["sparse", "dense"]  # what is quantized: the fine-tuned sparse model, or as a baseline its dense teacher
    epochs: NonNegative  # 0: post-training quantization, calibration alone
    weight_bits: Literal[8, 7]  # 7 where the model runs on processors without VNNI: no sum of two products overflows
    range_momentum: Annotated[float, Field(gt=0, le=1)]  # share of a new tensor in the moving minimum and maximum
    calibration_batches: Count  # before training, to find the first ranges
    begin_ratio: Ratio  # training is in float up to this share of the steps, while ranges already move
    freeze_ranges_ratio: Ratio  # after this share of the steps ranges no longer move

    @model_validator(mode="after")
    def _rounds_before_it_freezes(self) -> Self:
        if self.begin_ratio > self.freeze_ranges_ratio:
            raise ValueError(
                f"need begin_ratio <= freeze_ranges_ratio, found {self.begin_ratio} and {self.freeze_ranges_ratio}: ranges "
                "are to follow the model that is rounded"
            )
        return self


class Export(Section):
    parity_texts: Count  # of the validation split
    fp32_tolerance: Positive  # largest difference of a logit, as a fraction of the largest logit
    int8_tolerance: Positive
    same_decision_ratio: Ratio  # least share of equal decisions, int8
    embeddings: Literal["int8", "fp32"]  # of the int8 variant


class Evaluate(Section):
    threads: Count  # of ONNX Runtime
    batch_size: Count
    latency_tokens: Annotated[int, Field(ge=4)]
    warmup_runs: Runs
    latency_runs: Annotated[int, Field(ge=10)]
    resamples: Annotated[int, Field(ge=40)]  # of the bootstrap: intervals of all metrics but accuracy


class Report(Section):
    title: str
