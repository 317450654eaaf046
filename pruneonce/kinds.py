"""The kinds of task by name, and what the stages ask of a task whatever its kind: its losses and its score."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor, nn

from pruneonce.answering import QuestionAnswering
from pruneonce.classification import Classification, MultiLabel, Regression
from pruneonce.distillation import inner_losses, outputs_for
from pruneonce.errors import DataError
from pruneonce.tagging import TokenClassification
from pruneonce.tasks import Kind, evaluation_batches, in_order
from pruneonce.training import Batch, Loss, inputs, logits

KINDS: dict[str, Any] = {
    "classification": Classification,
    "regression": Regression,
    "multi_label": MultiLabel,
    "token_classification": TokenClassification,
    "question_answering": QuestionAnswering,
}
FILE = "task.json"


def save(kind: Kind, folder: Path) -> None:
    """Write what the task is beside its splits."""
    (name,) = (name for name, made in KINDS.items() if type(kind) is made)
    (folder / FILE).write_text(json.dumps({"kind": name, **asdict(kind)}) + "\n")  # type: ignore[call-overload]


def load(folder: Path) -> Kind:
    """The task whose splits lie in `folder`. Raises DataError if it does not say what it is."""
    if not (folder / FILE).is_file():
        raise DataError(f"expected {FILE} in {folder}, found none: it is written with the splits by `prepare_task`.")
    fields = json.loads((folder / FILE).read_text())
    return KINDS[fields.pop("kind")](**fields)


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


def score(model: nn.Module, kind: Kind, split: Dataset, tokenizer, *, engine: Accelerator) -> float:
    """The task's metric of a model on a split."""
    batches = evaluation_batches(split, kind, tokenizer)
    total, scorers = kind.scorers(split, in_order(_answers(model, kind, batches, engine)))
    return scorers[kind.metric](np.arange(total))


@torch.inference_mode()
def _answers(
    model: nn.Module, kind: Kind, batches: Iterable[Batch], engine: Accelerator
) -> Iterator[tuple[Batch, np.ndarray]]:
    model.eval().to(engine.device)
    for batch in batches:
        with engine.autocast():
            out = model(**{name: tensor.to(engine.device) for name, tensor in inputs(batch).items()})
        yield batch, logits(out, kind.outputs).float().cpu().numpy()
