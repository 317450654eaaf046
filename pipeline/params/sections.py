"""The sections of the stages, one class a section. No defaults: a key that is not in the file is an error that names it."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.params.metrics import METRICS
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
    seed: Seed  # of every random draw
    device: Literal["auto", "cpu"]  # auto: an accelerator if there is one
    precision: Literal["auto", "bf16", "fp32"]  # auto: bf16 if the processor has instructions for it
    attention: Literal["eager", "sdpa"]  # the implementation in transformers; eager is faster on CPUs
    threads: Threads  # of PyTorch; 0: as many as the processor has cores


class Documents(Section):
    """One file of the corpus: each row of `column` is a document."""

    source: Name  # a source of `fetch` or `fetch_local`
    split: Name  # the name of its file in that source, without the ending
    column: str  # the column with the text; each row is a document
    skip_rows: Rows  # lines after the header that are not data


class PrepareCorpus(Section):
    documents: Annotated[list[Documents], Field(min_length=1)]  # the files that make up the corpus
    block_tokens: Annotated[int, Field(ge=8)]  # tokens in a block, which is one row of a batch
    held_out_ratio: Annotated[float, Field(gt=0, lt=1)]  # share of the documents that no training reads
    max_tokens: Count | None  # stop after this number of training tokens; null: take all
    next_sentence: bool  # true: blocks are pairs of segments, for models with a next-sentence head; false: text without gaps
    short_ratio: Ratio  # with next_sentence: share of pairs that are short, of random length


class Training(Section):
    """What every training stage sets."""

    batch_size: Count  # rows of one optimizer step, over all processes
    micro_batches: Count  # a batch is cut into this number of pieces, and their gradients are added
    learning_rate: Positive  # its highest value
    weight_decay: NonNegative  # of AdamW
    clip_norm: Positive  # largest norm of the gradient
    dropout: Share | None  # replaces every dropout rate of the model; null: keep the model's

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.batch_size % self.micro_batches:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of micro_batches {self.micro_batches}")
        return self


class MaskedLM(Training):
    """Training on masked language modelling, measured in steps."""

    steps: Count  # optimizer steps
    warmup_steps: Steps  # steps in which the learning rate rises
    # share of the tokens that the model predicts; sparsify: 0.0 for plain text, where no loss reads predicted tokens
    masking_probability: Share
    gradient_checkpointing: bool  # compute activations again in the backward pass: less memory, a third more time
    held_out_batches: Count  # at most this number of held-out batches for the closing metric

    @model_validator(mode="after")
    def _warm_in_time(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"need warmup_steps < steps, found {self.warmup_steps} and {self.steps}")
        return self


class Distillation(Section):
    """The loss of a student: a weight for each part, and the temperature of the soft part."""

    temperature: Positive  # divides both logits of the soft loss
    hard_weight: NonNegative  # weight of the loss against the labels; on a corpus these are the masked tokens
    soft_weight: NonNegative  # weight of the loss against the teacher's logits
    hidden_weight: NonNegative  # weight of |student - teacher|^2 / |teacher|^2 of the hidden states, mean over layers
    # weight of the KL divergence from the teacher's attention; needs common.attention eager and dropout 0.0
    attention_weight: NonNegative

    @model_validator(mode="after")
    def _one_part(self) -> Self:
        if not self.hard_weight + self.soft_weight + self.hidden_weight + self.attention_weight > 0:
            raise ValueError("need one of hard_weight, soft_weight, hidden_weight, attention_weight above 0")
        return self


class PrepareTeacher(MaskedLM):
    # random: begin with random weights; the source needs a configuration and a tokenizer only
    weights: Literal["pretrained", "random"]

    @model_validator(mode="after")
    def _predicts(self) -> Self:
        if not self.masking_probability:
            raise ValueError("need masking_probability above 0: a masked language model learns from the tokens it predicts")
        return self


class Sparsify(MaskedLM):
    # which matrices are pruned: a regular expression over names; null: the linears of the layers, and of the pooler if any
    prunable: str | None
    sparsity: Share  # target share of zeros, of each prunable matrix or, with scope global, of all together
    initial_sparsity: Share  # sparsity of the first jump, at prune_begin_steps
    # AxB: blocks of A outputs x B inputs; N:M: N of every M inputs keep their weight
    pattern: Literal["unstructured", "1x4", "4x1", "2:4", "4:8"]
    scope: Literal["uniform", "global"]  # uniform: every matrix has the same sparsity; global: all matrices compete
    # what a weight is worth at the first jump. Best at a jump to the target: least_squares, which takes the longest
    first_criterion: Literal["magnitude", "second_order", "least_squares"]
    # what a weight is worth at every later pruning step
    criterion: Literal["magnitude", "movement", "second_order", "least_squares"]
    # second_order and least_squares: batches whose activations are measured at each pruning step
    calibration_batches: Count
    prune_begin_steps: Steps  # sparsity rises from this step
    prune_end_steps: Steps  # sparsity is reached at this step; masks may still move
    freeze_masks_steps: Steps  # masks no longer move from this step
    prune_every_steps: Count  # steps between two computations of the masks
    schedule: Literal["linear", "rewound"]  # of the learning rate; rewound: the paper's
    soft_positions: Literal["all", "masked"]  # where the soft loss reads logits; all: the paper's
    distillation: Distillation  # the parts of the loss

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
    def _predicts(self) -> Self:
        d = self.distillation
        if not self.masking_probability and (d.hard_weight or (d.soft_weight and self.soft_positions == "masked")):
            raise ValueError(
                "need masking_probability above 0 with hard_weight, and with soft_weight at masked positions: without a "
                "masked token these losses have nothing to read"
            )
        return self

    @model_validator(mode="after")
    def _choices_agree(self) -> Self:
        kept, colon, group = self.pattern.partition(":")
        if colon and self.sparsity != 1 - int(kept) / int(group):
            raise ValueError(f"pattern {self.pattern} is sparsity {1 - int(kept) / int(group)}, found {self.sparsity}")
        if colon and self.scope == "global":
            raise ValueError(f"need scope uniform with pattern {self.pattern}: every group of a matrix has its own count")
        criteria = (self.first_criterion, self.criterion)
        if fitted := next((c for c in ("second_order", "least_squares") if c in criteria), None):
            if self.scope == "global":
                raise ValueError(f"need scope uniform with {fitted}: each layer's costs are in the units of its own outputs")
            if self.criterion == "movement":
                raise ValueError(
                    f"need first_criterion magnitude with movement: what {fitted} prunes is set to 0, and 0 stays"
                )
        if "least_squares" in criteria and self.pattern != "unstructured":
            raise ValueError(
                f"need pattern unstructured with least_squares, found {self.pattern}: it chooses weights one by one. For "
                "blocks and N:M take second_order"
            )
        return self


class PrepareTask(Section):
    source: Name  # a source of `fetch` or `fetch_local`
    # what is decided
    kind: Literal["classification", "regression", "multi_label", "token_classification", "question_answering", "embedding"]
    metric: str  # what `score` is; each kind has its own metrics: see docs/tasks.md
    text: str  # column of the text, or of the question
    pair: str | None  # column of a second text, or of the context of a question; null: none
    # column of the label. embedding: of a class, whose texts should be neighbours, or null
    label: str | None
    # the classes in order; of two, the second is the positive one; null: the classes of the training rows, sorted
    labels: Annotated[list[str], Field(min_length=2)] | None
    more_tests: list[Name]  # further test splits: files test-<name>.* of the source
    skip_rows: Rows  # lines after the header that are not data
    max_tokens: Annotated[int, Field(ge=4)]  # longer texts are cut
    # share of the rows of train that is taken for validation, if the source has no validation split
    validation_ratio: Annotated[float, Field(gt=0, lt=1)]
    # share of the rows of train that is taken for the test, if the source has no test split
    test_ratio: Annotated[float, Field(gt=0, lt=1)]
    # embedding, of a model whose folder has no files of sentence-transformers: how its tokens' states become one vector
    pooling: Literal["mean", "cls", "max"]
    normalize: bool  # embedding, of the same: the vector is scaled to length 1
    stride_tokens: Count  # question_answering: tokens that a window of a long context shares with the one before
    max_answer_tokens: Count  # question_answering: longest answer
    n_best: Count  # question_answering: this many best starts of a window are paired with as many best ends
    # question_answering: no answer if its score exceeds the best span's by more than this; null: every question has one
    null_threshold: float | None

    @property
    def further_tests(self) -> list[str]:
        """`more_tests` by the names of their splits."""
        return [f"test-{name}" for name in self.more_tests]

    @property
    def columns(self) -> list[str]:
        """The columns of a row that are read, in the order of `text`, `pair` and `label`."""
        return [name for name in (self.text, self.pair, self.label) if name is not None]

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
        if self.kind != "embedding" and self.label is None:
            raise ValueError(f"{self.kind} needs `label`, the column of the label")
        if self.kind == "embedding" and self.label is not None and self.pair is not None:
            raise ValueError(
                "embedding reads `label`, the column of a class, or `pair`, the column of a second text; not both"
            )
        if self.kind == "token_classification" and self.pair is not None:
            raise ValueError(f"token_classification reads one text, found pair {self.pair!r}")
        if self.kind == "question_answering" and self.stride_tokens >= self.max_tokens // 2 - 4:
            raise ValueError(f"need stride_tokens < max_tokens / 2 - 4, found {self.stride_tokens} and {self.max_tokens}")
        return self


class TaskTraining(Training):
    """Training on a task, measured in epochs."""

    epochs: Positive  # may be a fraction: half an epoch reads half of the rows
    warmup_ratio: Share  # share of the steps in which the learning rate rises
    # longer texts are cut, in training only; evaluation reads prepare_task.max_tokens
    max_tokens: Annotated[int, Field(ge=4)]


class TeachTask(TaskTraining):
    pass


class Distilled(TaskTraining):
    """Training on a task with a dense teacher."""

    distillation: Distillation  # the parts of the loss
    # where a row is a pair of texts with one label: share of a batch's rows that get the second text of another row. Only
    # the teacher says what such a pair is; without a soft loss there are none
    new_pairs: Ratio


class Finetune(Distilled):
    pass


class Quantize(Distilled):
    start: Literal["sparse", "dense"]  # what is quantized: the fine-tuned sparse model, or its dense teacher as a baseline
    epochs: NonNegative  # 0: post-training quantization, which is calibration alone
    weight_bits: Literal[8, 7]  # 7: for processors without VNNI, where sums of two products of 8 bits overflow
    range_momentum: Annotated[float, Field(gt=0, le=1)]  # share of a new batch in the moving minimum and maximum of a range
    calibration_batches: Count  # before training, to find the first ranges
    begin_ratio: Ratio  # training is in float up to this share of the steps; ranges already move
    freeze_ranges_ratio: Ratio  # ranges no longer move after this share of the steps

    @model_validator(mode="after")
    def _rounds_before_it_freezes(self) -> Self:
        if self.begin_ratio > self.freeze_ranges_ratio:
            raise ValueError(
                f"need begin_ratio <= freeze_ranges_ratio, found {self.begin_ratio} and {self.freeze_ranges_ratio}: ranges "
                "are to follow the model that is rounded"
            )
        return self


class Export(Section):
    parity_texts: Count  # texts of the validation split on which ONNX Runtime is compared with PyTorch
    fp32_tolerance: Positive  # largest relative error of the logits, |ONNX Runtime - PyTorch| / |PyTorch|; dense and sparse
    int8_tolerance: Positive  # the same, of the int8 model
    same_decision_ratio: Ratio  # smallest share of texts that the int8 model decides as PyTorch does
    embeddings: Literal["int8", "fp32"]  # of the int8 model; fp32: embedding tables stay as they were trained


class Evaluate(Section):
    threads: Count  # of ONNX Runtime
    batch_size: Count  # texts of one call while scores are measured
    latency_tokens: Annotated[int, Field(ge=4)]  # tokens of one call while latency is measured; its batch is 1
    warmup_runs: Runs  # calls before latency is measured
    latency_runs: Annotated[int, Field(ge=10)]  # calls whose latency is measured
    operator_runs: Count  # calls whose time is measured by operator, after as many to warm up
    # Largest relative error of the logits of the sparse kernels, against those of ONNX Runtime's own. Both round to the
    # same grids. But float sums before a rounding differ in the last bit: some values fall to the other side.
    sparse_tolerance: Positive
    sparse_same_decision_ratio: Ratio  # smallest share of the test split's texts that both decide alike
    resamples: Annotated[int, Field(ge=40)]  # of the bootstrap: it gives the intervals of all metrics but accuracy


class Report(Section):
    title: str  # first line of the report


class Gates(Section):
    """What the int8 model must hold to become the champion. `tasks.<name>.gates` changes keys of it for one task."""

    # smallest score. null: better than no model, so the lower end of its 95 % interval is above the share of the most
    # frequent class, for an accuracy, and above 0 for any other metric. Labels that are mixed up fail here: dense falls too
    least_score: float | None
    # largest drop of the score against dense. It holds if a larger drop is ruled out: the lower end of the 95 % interval of
    # the paired difference int8 - dense is above minus this number. A short test split has a wide interval: give it room
    most_score_drop: Positive
    least_sparsity: Share  # smallest share of zeros in the prunable matrices, counted in the file
    least_same_decisions: Ratio  # parity: smallest share of texts that ONNX Runtime decides as PyTorch does, from `export`
    most_packed_bytes: Count  # most bytes of the file after `pruneonce pack`
    most_latency_ratio: Positive  # largest median latency of the faster int8 variant / median latency of dense
    # largest drop of the score against the champion, where the drop is more than noise (p < 0.05 in the paired test); 0.0:
    # nothing that is significantly worse becomes the champion
    most_drop_to_champion: NonNegative

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """This section with the keys of `tasks.<name>.gates` over it. Raises pydantic's ValidationError."""
        return self.model_validate({**self.model_dump(), **changes})


class Machine(Section):
    """How this machine works. Nothing in here changes what a stage writes, so no stage runs again for a change."""

    checkpoint_seconds: NonNegative  # a training saves its state when so many seconds have passed; 0: after every step
    stage_retries: Runs  # so often a flow starts a stage again that the system ended: killed, out of memory, a lost disk
    keep_scratch_days: Positive  # what an unfinished stage has saved is removed when nobody wrote to it for so many days


class TaskNames(Section):
    """The tasks, for the stages that read all of them."""

    names: list[str]
    gates: dict[str, dict[str, Any]]  # task: what it changes of the section `gates`; tasks that change nothing are left out
