"""How a model learns a task of any kind: the losses, the training of `teach_task`, `finetune` and `quantize`, the score."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruneonce.batch import Batch, Loss, inputs, logits
from pruneonce.distillation.losses import Distillation, inner_losses, outputs_for
from pruneonce.errors import DataError
from pruneonce.models import checkpoint
from pruneonce.models.tokenizers import check_vocabulary
from pruneonce.tasks import embedding, kinds, tagging
from pruneonce.tasks.batches import Batches, evaluation_batches, in_split_order
from pruneonce.tasks.examples import SPLITS
from pruneonce.tasks.protocol import Kind
from pruneonce.tasks.splits import read_split
from pruneonce.training import loop, schedules


class Recipe(Protocol):
    """The numbers of a training on a task, as params.yaml has them."""

    @property
    def batch_size(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...  # longer rows are cut, in training only
    @property
    def learning_rate(self) -> float: ...  # peak
    @property
    def warmup_ratio(self) -> float: ...  # fraction of the steps in which the rate rises
    @property
    def weight_decay(self) -> float: ...
    @property
    def clip_norm(self) -> float: ...


class DistilledRecipe(Recipe, Protocol):
    """A recipe of a student that learns from a teacher."""

    @property
    def distillation(self) -> Distillation: ...
    @property
    def new_pairs(self) -> float: ...  # share of a batch's rows, of a task whose rows are pairs of texts


@dataclass(frozen=True)
class Task:
    """A task as a stage reads it: its kind, its splits by name, its tokenizer, and the engine that computes."""

    kind: Kind
    tokenizer: PreTrainedTokenizerBase
    splits: Mapping[str, Dataset]
    engine: Accelerator

    @classmethod
    def read(cls, splits_folder: Path, model_folder: Path, engine: Accelerator) -> Self:
        """Return the task of a folder of splits, with the tokenizer of the model in `model_folder`.

        Raises DataError if the task's metric is undefined on the validation or the test split.
        """
        kind = kinds.load(splits_folder)
        splits = {name: read_split(splits_folder / f"{name}.arrow") for name in SPLITS}
        for name in ("validation", "test"):
            check_scorable(kind, splits[name], name)
        return cls(kind, checkpoint.load_tokenizer(model_folder), splits, engine)

    def model(self, folder: Path, *, attention: str, dropout: float | None, **config: Any) -> PreTrainedModel:
        """Return a task model in fp32, on the engine's device. Arguments as for `checkpoint.load_task_model`.

        Raises ModelError if the tokenizer has tokens for which the model has no embedding.
        """
        model = checkpoint.load_task_model(self.kind.architecture, folder, attention=attention, dropout=dropout, **config)
        embeddings: Any = model.get_input_embeddings()
        check_vocabulary(self.tokenizer, embeddings.num_embeddings, folder)
        return model.to(self.engine.device)

    def teacher(self, folder: Path, *, attention: str) -> PreTrainedModel:
        """Return a task model for inference only: no dropout, no gradient."""
        return self.model(folder, attention=attention, dropout=0.0).eval().requires_grad_(False)

    def student(
        self, sparse_folder: Path, teacher: PreTrainedModel, *, attention: str, dropout: float | None
    ) -> PreTrainedModel:
        """Return the sparse language model with a copy of the teacher's head, on the engine's device."""
        student = checkpoint.load_sparse_task_model(sparse_folder, teacher, attention=attention, dropout=dropout)
        return student.to(self.engine.device)

    def batches(self, recipe: Recipe, *, seed: int) -> Batches:
        """Return the batches of the train split, to learn from its labels. seed: of their order."""
        return self._batches(recipe, seed, new_pairs=0.0)

    def distilled_batches(self, recipe: DistilledRecipe, *, seed: int) -> Batches:
        """Return the same batches, to learn from a teacher: where rows are pairs of texts, some of a batch are new.

        Without a soft loss none is new: nothing would say what it is.
        """
        pairs = self.kind.new_pairs and "pair" in self.splits["train"].column_names
        learned = pairs and recipe.distillation.soft_weight > 0
        return self._batches(recipe, seed, new_pairs=recipe.new_pairs if learned else 0.0)

    def _batches(self, recipe: Recipe, seed: int, *, new_pairs: float) -> Batches:
        sizes = {"batch_size": recipe.batch_size, "max_tokens": recipe.max_tokens}
        return Batches(self.splits["train"], self.kind, self.tokenizer, **sizes, seed=seed, new_pairs=new_pairs)

    def fit(self, model: nn.Module, batches: Batches, loss: Loss, *, recipe: Recipe, steps: int, **options: Any) -> None:
        """Train with `loop.fit`. The rate rises over `warmup_ratio` of the steps, then falls linearly to 0.

        options: further keywords of `loop.fit`.
        """
        warmup = round(recipe.warmup_ratio * steps)
        loop.fit(
            model,
            batches,
            loss,
            engine=self.engine,
            learning_rate=partial(schedules.linear_decay, steps=steps, warmup=warmup, peak=recipe.learning_rate),
            steps=steps,
            weight_decay=recipe.weight_decay,
            clip_norm=recipe.clip_norm,
            seed=batches.seed,
            **options,
        )

    def distil(
        self, student: nn.Module, teacher: nn.Module, batches: Batches, *, recipe: DistilledRecipe, **options: Any
    ) -> None:
        """Train the student with `fit` and `distilled_loss`. options: further keywords of `fit`."""
        self.fit(student, batches, distilled_loss(self.kind, teacher, recipe.distillation), recipe=recipe, **options)

    def logits(self, model: nn.Module, split: str) -> list[np.ndarray]:
        """Return the logits of every row of a split, in its order."""
        batches = evaluation_batches(self.splits[split], self.kind, self.tokenizer)
        return in_split_order(_logits(model, self.kind, batches, self.engine))

    def metric(self, logits: Sequence[np.ndarray], split: str) -> float:
        """Return the task's metric, for the logits of every row of a split."""
        total, scorers = self.kind.scorers(self.splits[split], logits)
        return scorers[self.kind.metric](np.arange(total))

    def score(self, model: nn.Module, split: str) -> float:
        """Return the task's metric of a model on a split."""
        return self.metric(self.logits(model, split), split)


def _labels(rows: Dataset) -> Iterator[Any]:
    """The labels, some at a time: an embedding's are vectors."""
    return (label for some in rows.select_columns(["label"]).iter(1000) for label in some["label"])


def _all_equal(rows: Dataset) -> bool:
    labels = _labels(rows)
    first = next(labels)
    return all(label == first for label in labels)


# metric -> whether it is the same for every model on these rows: all of one label; none of the second class; no row with a
# label; no tag but the one outside of entities; no text with one to find and one not to find.
UNDEFINED: Mapping[str, Callable[[Kind, Dataset], bool]] = {
    **dict.fromkeys(("mcc", "pearson", "spearman"), lambda kind, rows: _all_equal(rows)),
    "f1": lambda kind, rows: not any(_labels(rows)),
    **dict.fromkeys(("micro_f1", "macro_f1"), lambda kind, rows: all(label == [] for label in _labels(rows))),
    "entity_f1": lambda kind, rows: not any(map(tagging.entity_in(kind), _labels(rows))),
    **dict.fromkeys(embedding.RETRIEVAL, lambda kind, rows: not embedding.can_be_ranked(rows)),
}


def check_scorable(kind: Kind, split: Dataset, name: str) -> None:
    """Raise DataError, before any training, if the kind's metric is the same for every model on a split."""
    if UNDEFINED.get(kind.metric, lambda kind, rows: False)(kind, split):
        raise DataError(
            f"expected {name} rows that tell models apart, found {len(split)} on which {kind.metric} is the same for every "
            f"model: all labels are the same, or none has what it counts. Raise prepare_task.{name}_ratio, change {name}.* "
            "of the source, or choose another `metric`."
        )


def hard_loss(kind: Kind) -> Loss:
    """Return the loss against the labels, of (model, batch): how a teacher learns."""

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": kind.hard(logits(model(**inputs(batch)), kind.outputs), batch)}

    return loss


def distilled_loss(kind: Kind, teacher: nn.Module, distillation: Distillation) -> Loss:
    """Return the loss of a student that learns from the labels and from its teacher, of (student, batch).

    loss = hard_weight * hard + soft_weight * soft + hidden_weight * hidden + attention_weight * attention
    hard, soft: of the kind of task; hard is of the rows that have a label, 0 for a piece of a batch where none has one. The
    other two: `distillation.losses.inner_losses`.
    """
    d = distillation

    def loss(student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        student_out = student(**inputs(batch), **outputs_for(d))
        with torch.no_grad():
            teacher_out = teacher(**inputs(batch), **outputs_for(d))
        student_logits, teacher_logits = logits(student_out, kind.outputs), logits(teacher_out, kind.outputs)
        hard = _labelled_loss(kind, student_logits, batch)
        soft = kind.soft(student_logits, teacher_logits, batch, d.temperature)
        inner = inner_losses(student_out, teacher_out, batch["attention_mask"], d)
        total = d.hard_weight * hard + d.soft_weight * soft
        for weight, part in inner.values():
            total = total + weight * part
        return {"loss": total, "hard": hard, "soft": soft, **{name: part for name, (_, part) in inner.items()}}

    return loss


def _labelled_loss(kind: Kind, logits: Tensor, batch: Batch) -> Tensor:
    """The hard loss of the rows that have a label: all, but for new pairs."""
    if "labelled" not in batch:
        return kind.hard(logits, batch)
    labelled = batch["labelled"]
    if not labelled.any():
        return logits.sum() * 0.0  # as part of the graph: every process computes the same one
    return kind.hard(logits[labelled], {name: tensor[labelled] for name, tensor in batch.items()})


@torch.inference_mode()
def _logits(
    model: nn.Module, kind: Kind, batches: Iterable[Batch], engine: Accelerator
) -> Iterator[tuple[Batch, np.ndarray]]:
    model.eval().to(engine.device)
    for batch in batches:
        with engine.autocast():
            out = model(**{name: tensor.to(engine.device) for name, tensor in inputs(batch).items()})
        yield batch, logits(out, kind.outputs).float().cpu().numpy()
