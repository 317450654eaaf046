"""The section `study`: the variants, their recipe and the claims. `make study` reads it; no stage of the pipeline does."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.params.section import Count, Name, NonNegative, Positive, Ratio, Section, Seed


class Variant(Section):
    """One way to a task model. With which language model it begins is an arrow of study/dvc.yaml."""

    pruning: Literal["none", "one_shot", "gradual", "once"]  # once: it begins sparse, its zeros locked
    hard_weight: NonNegative  # loss against the labels
    soft_weight: NonNegative  # loss against the teacher's logits
    int8: bool  # whether quantization-aware training follows

    @model_validator(mode="after")
    def _one_part(self) -> Self:
        if not self.hard_weight + self.soft_weight > 0:
            raise ValueError("need one of hard_weight, soft_weight above 0")
        return self


class StudyRecipe(Section):
    """What all cells of the study share."""

    seeds: Annotated[list[Seed], Field(min_length=2)]  # the first one tries every learning rate; without two, no spread
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
