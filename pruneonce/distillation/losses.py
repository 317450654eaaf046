"""The parts of a distillation loss: the teacher's logits, hidden states and attention.

A masked language model has the same soft loss over its whole vocabulary: `vocabulary.py` computes it in little memory.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 1e-8  # floor of a student's attention probability


class Distillation(Protocol):
    """The weight of every part of the loss, and the temperature of the soft part.

    loss = hard_weight * hard + soft_weight * soft + hidden_weight * hidden + attention_weight * attention
    """

    @property
    def temperature(self) -> float: ...  # > 0; divides the logits of student and teacher
    @property
    def hard_weight(self) -> float: ...  # loss against the labels
    @property
    def soft_weight(self) -> float: ...  # loss against the teacher's logits
    @property
    def hidden_weight(self) -> float: ...  # relative error of the hidden states
    @property
    def attention_weight(self) -> float: ...  # KL against the teacher's attention


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
    Returns a scalar >= 0. A student whose states are all 0 gets 1.
    Raises ValueError unless there are as many student as teacher layers, and one at least.
    Source: Sun et al. 2019, arXiv:1908.09355 (patient distillation). Scaled per layer, so all layers have the same weight.
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
    """Attention transfer: mean over layers, heads and tokens of KL(teacher's attention || student's attention).

    student, teacher: one float[batch, heads, length, length] a layer. Rows are probabilities, after the softmax and before
    any dropout. No gradient reaches teacher.
    attention_mask: [batch, length], 0 at padding, whose rows do not count.
    Returns a scalar >= 0 (up to rounding), 0 where both are equal.
    Raises ValueError unless there are as many student as teacher layers, and one at least.
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
        weight = torch.ones_like(rows) if attention_mask is None else attention_mask.float()
        divergences.append((rows * weight).sum() / weight.sum())
    return torch.stack(divergences).mean()


def outputs_for(distillation: Distillation) -> dict[str, bool]:
    """The keywords of a transformers model by which it returns what `inner_losses` reads."""
    return {
        "output_hidden_states": distillation.hidden_weight > 0,
        "output_attentions": distillation.attention_weight > 0,
    }


def inner_losses(
    student: Any, teacher: Any, attention_mask: Tensor, distillation: Distillation
) -> dict[str, tuple[float, Tensor]]:
    """The losses between embeddings and logits: name -> (weight, loss), those of a weight above 0.

    student, teacher: outputs of transformers models of the same shape. hidden_states[0], the embeddings, is not compared.
    """
    parts: dict[str, tuple[float, Tensor]] = {}
    if distillation.hidden_weight > 0:
        loss = hidden_loss(student.hidden_states[1:], teacher.hidden_states[1:], attention_mask)
        parts["hidden"] = distillation.hidden_weight, loss
    if distillation.attention_weight > 0:
        loss = attention_loss(student.attentions, teacher.attentions, attention_mask)
        parts["attention"] = distillation.attention_weight, loss
    return parts


def binary_soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Distillation loss of independent labels: T^2 * KL(s(teacher / T) || s(student / T)), mean over all labels.

    student, teacher: logits, float[..., labels]; s: the distribution (sigmoid, 1 - sigmoid) of one label.
    No gradient reaches teacher. Returns a scalar >= 0 (up to rounding). Raises ValueError unless temperature > 0.
    Source: Hinton et al. 2015, arXiv:1503.02531, section 2, for a binary label.
    """
    s, t = (torch.stack([logits, torch.zeros_like(logits)], dim=-1) for logits in (student, teacher))
    return soft_loss(s, t, temperature)
