"""The section `study`: the variants, their recipe and the claims. `make study` reads it; no stage of the pipeline does."""

from itertools import chain, product
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from pipeline.params.section import Count, Name, NonNegative, Positive, Ratio, Section, Seed

Criterion = Literal["magnitude", "second_order", "least_squares"]
Criteria = Annotated[list[Criterion], Field(min_length=1)]
Sparsities = Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)]
T = TypeVar("T")
Two = Annotated[list[T], Field(min_length=2, max_length=2)]


class Variant(Section):
    """One way to a task model. With which language model it begins is an arrow of study/dvc.yaml."""

    # one_shot, gradual: while the task is learned; once: before, with the zeros locked
    pruning: Literal["none", "one_shot", "gradual", "once"]
    hard_weight: NonNegative  # weight of the loss against the labels
    soft_weight: NonNegative  # weight of the loss against the teacher's logits
    int8: bool  # true: quantization-aware training follows

    @model_validator(mode="after")
    def _one_part(self) -> Self:
        if not self.hard_weight + self.soft_weight > 0:
            raise ValueError("need one of hard_weight, soft_weight above 0")
        if self.soft_weight == 0 and self.hard_weight != 1:  # the labels' loss is then the whole loss, without a weight
            raise ValueError(f"need hard_weight 1 where soft_weight is 0, found {self.hard_weight:g}")
        return self


class StudyRecipe(Section):
    """What all cells of the study share."""

    seeds: Annotated[list[Seed], Field(min_length=2)]  # the first one chooses the learning rate; two or more give a spread
    learning_rates: Annotated[list[Positive], Field(min_length=1)]  # that may be tried, rising
    first_learning_rate: Positive  # of these: where the search begins; it ends where both neighbours of the best are tried
    prune_end_ratio: Ratio  # gradual: share of the steps after which the target sparsity is reached
    prune_every_steps: Count  # gradual: steps between two computations of the masks
    resamples: Count  # draws of the test rows: for the interval of a difference of two variants

    @model_validator(mode="after")
    def _ladder(self) -> Self:
        if self.learning_rates != sorted(set(self.learning_rates)):
            raise ValueError(f"learning_rates must rise, found {self.learning_rates}")
        if self.first_learning_rate not in self.learning_rates:
            raise ValueError(f"first_learning_rate must be of learning_rates, found {self.first_learning_rate:g}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ, found {self.seeds}")
        return self


class Baselines(Section):
    """Variants that a claim needs, but not at every sparsity and not by every criterion."""

    variants: list[Name]  # of `variants`; study/dvc.yaml has them as well
    sparsities: Sparsities  # of the baselines
    criteria: Criteria  # by which the baselines prune


class Longer(Section):
    """Some cells learn one task once more, in more steps: does the order of the variants stay?"""

    task: Name  # of the cells that learn longer
    sparsity: float  # of these cells
    criterion: Criterion  # of these cells
    variants: list[Name]  # of these cells, each a variant of `variants`
    steps: Count  # in place of those of `steps`, at the rate that these chose


class Claims(Section):
    """What is expected of the scores: of every two, the first one is no lower than the second one."""

    when: list[Two[Name]]  # variants, by the same criterion at the same sparsity
    how: list[Two[Criterion]]  # criteria, of the same variant at the same sparsity
    smaller: list[Two[float]]  # sparsities: int8 at the first one, which is smaller, and float at the second one


class Study(Section):
    """What is compared with what; `study/dvc.yaml` says which model each variant begins with."""

    title: str  # first line of the table
    tasks: Annotated[list[Name], Field(min_length=1)]  # tasks of `tasks`
    sparsities: Sparsities  # of every variant that prunes, but for the baselines
    criteria: Criteria  # by which these prune
    baselines: Baselines  # fewer cells for the variants that need no more
    steps: dict[Name, Count]  # task: optimizer steps of learning it, the same for every variant
    recipe: StudyRecipe  # what all variants share; all other numbers are those of `finetune` and `quantize`
    longer: Longer  # some cells learn the task once more, in more steps
    variants: dict[Name, Variant]  # the ways to a task model
    claims: Claims  # what is judged

    @property
    def dense(self) -> str:
        """The variant that is not pruned."""
        return next(name for name, variant in self.variants.items() if variant.pruning == "none")

    def cells(self) -> list[tuple[str, str, float]]:
        """Variant, criterion and sparsity of every cell of a task; the dense one is first, at sparsity 0 by "none"."""
        found = [(self.dense, "none", 0.0)]
        for name in self.variants:
            of = self.baselines if name in self.baselines.variants else self
            if name != self.dense:
                found += [(name, *key) for key in product(of.criteria, of.sparsities)]
        return found

    def longer_without_cells(self) -> list[str]:
        """What `longer` names and no cell has, in words."""
        more, known = self.longer, set(self.cells())
        missing = [name for name in more.variants if (name, more.criterion, more.sparsity) not in known]
        task = [] if more.task in self.tasks else [f"task {more.task}"]
        return task + [f"{name} by {more.criterion} at {more.sparsity:g}" for name in missing]

    @model_validator(mode="after")
    def _named(self) -> Self:
        if set(self.steps) != set(self.tasks):
            raise ValueError(f"steps needs exactly the tasks {self.tasks}, found {list(self.steps)}")
        named = {*chain(*self.claims.when), *self.baselines.variants, *self.longer.variants}
        if unknown := sorted(named - set(self.variants)):
            raise ValueError(f"claims, baselines and longer name variants {unknown}, found variants {list(self.variants)}")
        dense = [name for name, variant in self.variants.items() if variant.pruning == "none"]
        if len(dense) != 1:
            raise ValueError(f"need one variant with pruning none, which the others are measured against, found {dense}")
        if dense[0] in named:
            raise ValueError(f"claims, baselines and longer name variants with a sparsity, found {dense[0]}, which has none")
        if not self.longer.steps > self.steps.get(self.longer.task, 0):
            raise ValueError(f"longer.steps must be more than those of steps, found {self.longer.steps}")
        return self
