"""How a task is learned, whatever its kind: its losses, the training that its three stages share, its score."""

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
from pruneonce.distillation.losses import inner_losses, outputs_for
from pruneonce.errors import DataError
from pruneonce.models import checkpoint
from pruneonce.models.tokenizers import check_vocabulary
from pruneonce.tasks import kinds
from pruneonce.tasks.batches import Batches, evaluation_batches, in_order
from pruneonce.tasks.examples import SPLITS
from pruneonce.tasks.protocol import Kind
from pruneonce.tasks.splits import read_split
from pruneonce.training import loop, schedules


class Recipe(Protocol):
    """A stage's own numbers of a training on a task."""

    @property
    def batch_size(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup_ratio(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def clip_norm(self) -> float: ...


@dataclass(frozen=True)
class Task:
    """A task as a stage meets it: what it is, its splits by name, what reads its texts, and where it is computed."""

    kind: Kind
    tokenizer: PreTrainedTokenizerBase
    splits: Mapping[str, Dataset]
    engine: Accelerator

    @classmethod
    def read(cls, splits: Path, model: Path, engine: Accelerator) -> Self:
        """The task whose splits lie in a folder, for a model and its tokenizer.

        Raises DataError if the validation or test split cannot tell one model from another by the task's metric.
        """
        kind, rows = kinds.load(splits), {name: read_split(splits / f"{name}.arrow") for name in SPLITS}
        for name in ("validation", "test"):
            check_scorable(kind.metric, rows[name], name)
        return cls(kind, checkpoint.load_tokenizer(model), rows, engine)

    def model(self, folder: Path, *, attention: str, dropout: float | None, **config: Any) -> PreTrainedModel:
        """`checkpoint.load_task_model`, where it is computed."""
        model = checkpoint.load_task_model(self.kind.architecture, folder, attention=attention, dropout=dropout, **config)
        embeddings: Any = model.get_input_embeddings()
        check_vocabulary(self.tokenizer, embeddings.num_embeddings, folder)
        return model.to(self.engine.device)

    def teacher(self, folder: Path, *, attention: str) -> PreTrainedModel:
        """A model that is asked and never trained."""
        return self.model(folder, attention=attention, dropout=0.0).eval().requires_grad_(False)

    def batches(self, recipe: Recipe, *, seed: int) -> Batches:
        """Of the train split."""
        sizes = {"batch_size": recipe.batch_size, "max_tokens": recipe.max_tokens}
        return Batches(self.splits["train"], self.kind, self.tokenizer, **sizes, seed=seed)

    def fit(self, model: nn.Module, batches: Batches, loss: Loss, *, recipe: Recipe, steps: int, **more: Any) -> None:
        """`training.fit` by the recipe: the rate rises over `warmup_ratio` of the steps, then falls linearly to 0."""
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
            **more,
        )

    def answers(self, model: nn.Module, split: str) -> list[np.ndarray]:
        """The logits of every row of a split, in its order."""
        batches = evaluation_batches(self.splits[split], self.kind, self.tokenizer)
        return in_order(_answered(model, self.kind, batches, self.engine))

    def metric(self, answers: Sequence[np.ndarray], split: str) -> float:
        """The task's metric of answers to every row of a split."""
        total, scorers = self.kind.scorers(self.splits[split], answers)
        return scorers[self.kind.metric](np.arange(total))

    def score(self, model: nn.Module, split: str) -> float:
        """The task's metric of a model on a split."""
        return self.metric(self.answers(model, split), split)


# Labels of a split on which a metric is 0 for every model: all the same; none of the second class; rows without any.
UNDEFINED: Mapping[str, Callable[[list], bool]] = {
    **dict.fromkeys(("mcc", "pearson", "spearman"), lambda labels: all(label == labels[0] for label in labels)),
    "f1": lambda labels: not any(labels),
    **dict.fromkeys(("micro_f1", "macro_f1"), lambda labels: all(label == [] for label in labels)),
}


def check_scorable(metric: str, split: Dataset, name: str) -> None:
    """Raises DataError, before anything is trained, if the metric is undefined on the labels of a split."""
    labels = split["label"][:] if "label" in split.column_names else []
    if UNDEFINED.get(metric, lambda labels: False)(labels):
        raise DataError(
            f"expected {name} rows of more than one label, found {len(labels)} of {labels[:1]}, on which {metric} is 0 for "
            f"every model. Raise prepare_task.{name}_ratio, mend {name}.* of the source, or choose another `metric`."
        )


def hard_loss(kind: Kind) -> Loss:
    """Loss against the labels: how a teacher learns."""

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": kind.hard(logits(model(**inputs(batch)), kind.outputs), batch)}

    return loss


def distilled_loss(
    kind: Kind,
    teacher: nn.Module,
    *,
    temperature: float,
    soft_ratio: float,
    hidden_weight: float,
    attention_weight: float = 0.0,
) -> Loss:
    """(1 - soft_ratio) hard + soft_ratio soft + hidden_weight hidden + attention_weight attention, on (student, batch)."""
    weights = {"hidden": hidden_weight, "attention": attention_weight}

    def loss(student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        ours = student(**inputs(batch), **outputs_for(weights))
        with torch.no_grad():
            theirs = teacher(**inputs(batch), **outputs_for(weights))
        said, taught = logits(ours, kind.outputs), logits(theirs, kind.outputs)
        parts = {"hard": kind.hard(said, batch), "soft": kind.soft(said, taught, batch, temperature)}
        total = (1 - soft_ratio) * parts["hard"] + soft_ratio * parts["soft"]
        for name, part in inner_losses(ours, theirs, batch["attention_mask"], weights).items():
            parts[name] = part
            total = total + weights[name] * part
        return {"loss": total, **parts}

    return loss


@torch.inference_mode()
def _answered(
    model: nn.Module, kind: Kind, batches: Iterable[Batch], engine: Accelerator
) -> Iterator[tuple[Batch, np.ndarray]]:
    model.eval().to(engine.device)
    for batch in batches:
        with engine.autocast():
            out = model(**{name: tensor.to(engine.device) for name, tensor in inputs(batch).items()})
        yield batch, logits(out, kind.outputs).float().cpu().numpy()
