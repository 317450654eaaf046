"""The section `study`: the variants, their recipe and the claims. `make study` reads it; no stage of the pipeline does."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.params.section import Count, Name, NonNegative, Positive, Ratio, Section, Seed


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

    seeds: Annotated[list[Seed], Field(min_length=2)]  # the first one tries every learning rate; two or more give a spread
    learning_rates: Annotated[list[Positive], Field(min_length=1)]  # every variant takes the one that is best on validation
    prune_end_ratio: Ratio  # gradual: share of the steps after which the target sparsity is reached
    prune_every_steps: Count  # gradual: steps between two computations of the masks


class Study(Section):
    """What is compared with what; `study/dvc.yaml` says which model each variant begins with."""

    title: str  # first line of the table
    tasks: Annotated[list[Name], Field(min_length=1)]  # tasks of `tasks`
    sparsities: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)]  # of every variant that prunes
    steps: dict[Name, Count]  # task: optimizer steps of learning it, the same for every variant
    recipe: StudyRecipe  # what all variants share; all other numbers are those of `finetune` and `quantize`
    variants: dict[Name, Variant]  # the ways to a task model
    # pairs of variants: the first one scores no lower than the second one
    claims: list[Annotated[list[Name], Field(min_length=2, max_length=2)]]

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
