"""What a student learns from a teacher: its logits, its hidden states, where it looks."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 1e-8  # floor of a student's attention probability


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Distillation loss T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over rows.

    student, teacher: logits, float[..., classes]; every leading index is one row. No gradient reaches teacher.
    temperature: > 0; T^2 keeps the gradient's size independent of T.
    Returns a scalar >= 0 (up to rounding), 0 where the two differ by a constant per row.
    Raises ValueError unless temperature > 0.
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    log_q = F.log_softmax(student.float() / temperature, dim=-1)
    log_p = F.log_softmax(teacher.detach().float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).mean()


def hidden_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], attention_mask: Tensor | None = None) -> Tensor:
    """Relative error of the hidden states: mean over layers of |student - teacher|^2 / |teacher|^2.

    student, teacher: one float[batch, length, hidden] a layer. No gradient reaches teacher.
    attention_mask: [batch, length], 0 at padding, which does not count.
    Returns a scalar >= 0; 1 is what a student that answers 0 everywhere gets.
    Source: Sun et al. 2019, arXiv:1908.09355 (patient distillation), scaled per layer so that layers weigh the same.
    """
    if len(student) != len(teacher) or not student:
        raise ValueError(f"need as many student as teacher states, and one at least; got {len(student)}, {len(teacher)}")
    weight = 1.0 if attention_mask is None else attention_mask.unsqueeze(-1).float()
    errors = []
    for s, t in zip(student, teacher, strict=True):
        t = t.detach().float()
        errors.append((weight * (s.float() - t).square()).sum() / (weight * t.square()).sum())
    return torch.stack(errors).mean()


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], attention_mask: Tensor | None = None) -> Tensor:
    """Attention transfer: mean over layers, heads and tokens of KL(where the teacher looks || where the student looks).

    student, teacher: one float[batch, heads, length, length] a layer, rows of probabilities (after the softmax, before any
    dropout). No gradient reaches teacher.
    attention_mask: [batch, length], 0 at padding: it does not look, and nobody looks at it.
    Returns a scalar >= 0 (up to rounding), 0 where all look alike. Raises ValueError unless there are as many layers.
    Source: Sun et al. 2020, arXiv:2004.02984 (MobileBERT), "attention transfer"; of the last layer alone, Wang et al.
    2020, arXiv:2002.10957 (MiniLM).
    """
    if len(student) != len(teacher) or not student:
        raise ValueError(f"need as many student as teacher layers, and one at least; got {len(student)}, {len(teacher)}")
    divergences = []
    for q, p in zip(student, teacher, strict=True):
        p, q = p.detach().float(), q.float()
        # A probability of 0 in bf16 would have an infinite logarithm; where the teacher's is 0 as well, 0 log 0 = 0.
        rows = (torch.xlogy(p, p) - p * q.clamp(min=SMALLEST).log()).sum(-1).mean(1)  # float[batch, length]
        looks = torch.ones_like(rows) if attention_mask is None else attention_mask.float()
        divergences.append((rows * looks).sum() / looks.sum())
    return torch.stack(divergences).mean()


def outputs_for(weights: Mapping[str, float]) -> dict[str, bool]:
    """What a transformers model is asked to return besides logits so that `inner_losses` can be had."""
    return {"output_hidden_states": weights["hidden"] > 0, "output_attentions": weights["attention"] > 0}


def inner_losses(student: Any, teacher: Any, attention_mask: Tensor, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """The losses on what lies between embeddings and logits, by name: those of `weights` above 0.

    student, teacher: outputs of transformers models of the same shape. weights: hidden, attention. The embeddings' own
    output is no layer and does not count.
    """
    parts: dict[str, Tensor] = {}
    if weights["hidden"] > 0:
        parts["hidden"] = hidden_loss(student.hidden_states[1:], teacher.hidden_states[1:], attention_mask)
    if weights["attention"] > 0:
        parts["attention"] = attention_loss(student.attentions, teacher.attentions, attention_mask)
    return parts


def binary_soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Distillation loss of labels that are decided one by one: T^2 * KL(s(teacher / T) || s(student / T)), mean over all.

    student, teacher: logits, float[..., labels]; s: the distribution (sigmoid, 1 - sigmoid) of one label.
    No gradient reaches teacher. Returns a scalar >= 0 (up to rounding). Raises ValueError unless temperature > 0.
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2, for a label that holds or does not.
    """
    ours, theirs = (torch.stack([logits, torch.zeros_like(logits)], dim=-1) for logits in (student, teacher))
    return soft_loss(ours, theirs, temperature)
