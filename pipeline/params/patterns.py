"""The section `patterns`: what `make patterns` compares, at which sparsities. No stage of the pipeline reads it."""

from itertools import product
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.params.section import Name, Section, Seed


class Patterns(Section):
    """Every pattern at every sparsity on every task; `study/patterns/dvc.yaml` has the cells."""

    title: str  # first line of the table
    tasks: Annotated[list[Name], Field(min_length=1)]  # tasks of `tasks`
    more_tasks: list[Name]  # further tasks, files of profiles/tasks: this study fetches, prepares and teaches them itself
    # the first one is what the others are compared with
    patterns: Annotated[list[Literal["unstructured", "1x4", "4x1"]], Field(min_length=2)]
    sparsities: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)]  # of every pattern
    seeds: Annotated[list[Seed], Field(min_length=2)]  # of a cell's models; the int8 file of the first one is measured

    @model_validator(mode="after")
    def _differ(self) -> Self:
        for key in ("patterns", "sparsities", "seeds"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"{key} must differ, found {values}")
        twice = sorted({task for task in self.all_tasks if self.all_tasks.count(task) > 1})
        if twice:
            raise ValueError(f"need each task once in tasks and more_tasks, found {twice} twice")
        return self

    @property
    def all_tasks(self) -> list[str]:
        """`tasks`, then `more_tasks`."""
        return [*self.tasks, *self.more_tasks]

    @property
    def cells(self) -> list[str]:
        """The name of every cell, as its files have it."""
        return [cell(*key) for key in product(self.all_tasks, self.patterns, self.sparsities)]


def cell(task: str, pattern: str, sparsity: float) -> str:
    """The name of a cell: r8-1x4-0.85."""
    return f"{task}-{pattern}-{sparsity:g}"
