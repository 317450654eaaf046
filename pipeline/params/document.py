"""params.yaml as a whole: read, changed by `section.key=value`, and validated.

The section of a stage that runs once per task is the recipe of all tasks; `tasks.<name>.<stage>` changes numbers of it for
one task.
"""

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.params.patterns import Patterns
from pipeline.params.reading import parse_yaml, read_yaml
from pipeline.params.section import Name, Section
from pipeline.params.sections import (
    Common,
    Distilled,
    Evaluate,
    Export,
    Finetune,
    Gates,
    Machine,
    PrepareCorpus,
    PrepareTask,
    PrepareTeacher,
    Quantize,
    Report,
    Sparsify,
    TaskNames,
    TeachTask,
)
from pipeline.params.sources import LocalSource, RemoteSource
from pipeline.params.study import Study
from pruneonce.errors import ConfigError

TASK_STAGES: dict[str, type[Section]] = {
    "prepare_task": PrepareTask,
    "teach_task": TeachTask,
    "finetune": Finetune,
    "quantize": Quantize,
}
GATES = "gates"  # no stage of a task; a task's block may change keys of it


class Params(Section):
    """The whole file. Stages of a task are validated as merged: the recipe with the task's changes over it."""

    # the version that computes, in a project of `pruneonce init`; a clone has its own code, and no such key
    pruneonce: str | None = None
    # the command that starts the stages that train, such as torchrun; split into words as in a shell, but no shell reads it
    launcher: Annotated[str, Field(pattern=r"^[A-Za-z]")]
    machine: Machine
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
    gates: Gates
    study: Study | None = None  # a project of `pruneonce init` has no studies
    patterns: Patterns | None = None
    # task: stage: the keys that differ from the recipe of that stage; a task may also have keys of `gates`
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
        """The section of `stage`; for a task or a source, its own. Raises ConfigError for one that is not there."""
        if stage in TASK_STAGES:
            if item not in self.tasks:
                raise ConfigError(f"expected a task of params.yaml, found {item!r}. There is: {', '.join(self.tasks)}.")
            return TASK_STAGES[stage].model_validate(merged(getattr(self, stage), self.tasks[item][stage]))
        if stage == "tasks":
            changes = {task: block[GATES] for task, block in self.tasks.items() if block.get(GATES)}
            return TaskNames(names=list(self.tasks), gates=changes)
        section = getattr(self, stage)
        if isinstance(section, dict) and item not in section:
            there = ", ".join(section) or "none"
            raise ConfigError(f"expected a source below {stage} in params.yaml, found {item!r}. There is: {there}.")
        return section[item] if isinstance(section, dict) else section

    def gates_of(self, task: str) -> Gates:
        """The section `gates` with the changes of this task."""
        return self.gates.changed(self.tasks[task].get(GATES, {}))

    def task_sections(self) -> Iterator[tuple[str, str, Any]]:
        """(stage, task, its section) for every stage of every task."""
        return ((stage, task, self.section(stage, task)) for task in self.tasks for stage in TASK_STAGES)

    def check_study(self, wired: Collection[str]) -> None:
        """Raises ConfigError for unknown tasks or cells, impossible sparsities, or other variants than study/dvc.yaml has.

        wired: the variants of study/dvc.yaml.
        """
        if self.study is None:
            raise self._no_study("study")
        self._check_tasks("study", self.study.tasks, "study.tasks and study.steps")
        if set(wired) != set(self.study.variants):
            raise ConfigError(
                f"expected study.variants to be those of study/dvc.yaml, {sorted(wired)}, found "
                f"{sorted(self.study.variants)}. Change study.variants in params.yaml, or the variants in study/dvc.yaml, "
                "which says what model each begins with."
            )
        for sparsity in dict.fromkeys([*self.study.sparsities, *self.study.baselines.sparsities]):
            self._check_sparsity("study", sparsity=sparsity)
        if strangers := self.study.longer_without_cells():
            raise ConfigError(
                f"expected cells of the study in study.longer, found {', '.join(strangers)}, which it does not have. Change "
                "study.longer in params.yaml, or study.tasks, sparsities, criteria and baselines."
            )

    def check_patterns(self) -> None:
        """Raises ConfigError for unknown tasks, or sparsities that are impossible in one of the patterns."""
        if self.patterns is None:
            raise self._no_study("patterns")
        self._check_tasks("patterns", self.patterns.tasks, "patterns.tasks")
        for pattern, sparsity in product(self.patterns.patterns, self.patterns.sparsities):
            self._check_sparsity("patterns", sparsity=sparsity, pattern=pattern)

    @staticmethod
    def _no_study(section: str) -> ConfigError:
        return ConfigError(
            f"expected a section `{section}` in params.yaml, found none. The studies run in a clone of pruneonce."
        )

    def _check_tasks(self, section: str, tasks: Sequence[str], keys: str) -> None:
        strangers = [task for task in tasks if task not in self.tasks]
        if strangers:
            raise ConfigError(
                f"expected {section}.tasks among the tasks {list(self.tasks)}, found {strangers}. Change {keys} in "
                "params.yaml."
            )

    def _check_sparsity(self, section: str, **changes: Any) -> None:
        """changes: of the section sparsify, with its sparsity."""
        try:
            Sparsify.model_validate({**self.sparsify.model_dump(), **changes})
        except ValidationError as error:
            raise ConfigError(
                f"expected {section}.sparsities that sparsify can reach, found {changes['sparsity']}: "
                f"{in_words(error, 'sparsify')}. Change {section}.sparsities, or the section sparsify, in params.yaml."
            ) from None

    def check_lengths(self, positions: int) -> None:
        """Raises ConfigError for the first number of tokens above the model's positions."""
        lengths = {
            "prepare_corpus.block_tokens": self.prepare_corpus.block_tokens,
            "evaluate.latency_tokens": self.evaluate.latency_tokens,
        }
        lengths |= {f"max_tokens of {stage} for task {task}": each.max_tokens for stage, task, each in self.task_sections()}
        for key, tokens in lengths.items():
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
            if set(block) - {GATES} != set(TASK_STAGES):
                raise ValueError(
                    f"tasks.{task} needs exactly the keys {sorted(TASK_STAGES)}, and may have {GATES}, found {sorted(block)}"
                )
            for stage in (*TASK_STAGES, GATES):
                try:
                    self.gates_of(task) if stage == GATES else self.section(stage, task)
                except ValidationError as error:
                    raise ValueError(f"in {stage} with tasks.{task}.{stage}: {in_words(error)}") from None
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
        """transformers returns attention probabilities from its eager implementation alone, and after the dropout."""
        losses: dict[str, Any] = {"sparsify": self.sparsify}
        losses |= {f"{stage} of {task}": each for stage, task, each in self.task_sections() if isinstance(each, Distilled)}
        for name, section in losses.items():
            weight = section.distillation.attention_weight
            if weight > 0 and (self.common.attention != "eager" or section.dropout != 0):
                raise ValueError(
                    f"attention_weight {weight} in {name} needs common.attention eager and dropout 0.0, "
                    f"found {self.common.attention} and {section.dropout}"
                )
        return self

    @model_validator(mode="after")
    def _sources_exist(self) -> Self:
        both = set(self.fetch) & set(self.fetch_local)
        if both:
            raise ValueError(f"source names stand in fetch and in fetch_local: {sorted(both)}")
        names = {"common.model": self.common.model}
        names |= {f"prepare_corpus.documents[{i}].source": d.source for i, d in enumerate(self.prepare_corpus.documents)}
        names |= {f"tasks.{t}.{stage}.source": s.source for stage, t, s in self.task_sections() if stage == "prepare_task"}
        for key, name in names.items():
            if name not in self.sources():
                raise ValueError(f"{key} names source {name!r}, found sources {sorted(self.sources())}")
        return self


def merged(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with the changes over it; mappings key by key."""

    def value(key: str, new: Any) -> Any:
        old = recipe.get(key)
        return merged(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new

    return {**recipe, **{key: value(key, new) for key, new in changes.items()}}


def in_words(error: ValidationError, whole: str = "file") -> str:
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
        raise ConfigError(
            f"{name} is not valid. {in_words(error)}. Correct the file; profiles/ holds files that work."
        ) from None


def load(path: Path = Path("params.yaml"), changes: Sequence[str] = (), parts: Sequence[Path] = ()) -> Params:
    """The parameters of this run. parts: files of sections, laid over the file; changes: "section.key=value", over both."""
    document = read_yaml(path)
    for part in parts:
        sections = read_yaml(part)
        if not isinstance(sections, dict):
            raise ConfigError(f"expected sections in {part}, found {sections!r}. Correct the file.")
        document = merged(document, sections)
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
        # A task's block may lack a key of its recipe, and the block `gates`; everything else must be there already.
        in_block = path[0] == "tasks" and (depth >= 3 or (depth == 2 and key == GATES))
        if key not in document and in_block and depth < len(path) - 1:
            document[key] = type(document)()
        if key not in document and not in_block:
            raise ConfigError(f"expected one of the keys {list(document)}, found {key!r} in override {change!r}.")
        if depth == len(path) - 1:
            document[key] = value
        else:
            document = document[key]
