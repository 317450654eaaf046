"""Sequence classification: the distilled loss and the validation score."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from pruneonce.distillation import inner_losses, outputs_for, soft_loss
from pruneonce.training import Batch, Loss, inputs


def hard_loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Cross entropy against the labels: how a teacher learns."""
    out = model(**inputs(batch))
    return {"loss": F.cross_entropy(out.logits.float(), batch["labels"])}


def distilled_loss(
    teacher: nn.Module, *, temperature: float, soft_ratio: float, hidden_weight: float, attention_weight: float = 0.0
) -> Loss:
    """(1 - soft_ratio) hard + soft_ratio soft + hidden_weight hidden + attention_weight attention, on (student, batch)."""
    weights = {"hidden": hidden_weight, "attention": attention_weight}

    def loss(student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        ours = student(**inputs(batch), **outputs_for(weights))
        with torch.no_grad():
            theirs = teacher(**inputs(batch), **outputs_for(weights))
        parts = {
            "hard": F.cross_entropy(ours.logits.float(), batch["labels"]),
            "soft": soft_loss(ours.logits, theirs.logits, temperature),
        }
        total = (1 - soft_ratio) * parts["hard"] + soft_ratio * parts["soft"]
        for name, part in inner_losses(ours, theirs, batch["attention_mask"], weights).items():
            parts[name] = part
            total = total + weights[name] * part
        return {"loss": total, **parts}

    return loss


@torch.inference_mode()
def accuracy(model: nn.Module, batches: Iterable[Batch], *, engine: Accelerator) -> float:
    """Share of rows whose largest logit is the label, in [0, 1]."""
    model.eval().to(engine.device)
    right = count = 0
    for batch in batches:
        batch = {k: v.to(engine.device) for k, v in batch.items()}
        with engine.autocast():
            logits = model(**inputs(batch)).logits
        right += int((logits.argmax(-1) == batch["labels"]).sum())
        count += len(logits)
    return right / count
