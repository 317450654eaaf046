"""What a student learns from a teacher: its logits and its hidden states."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


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
