"""Losses over a vocabulary, without all logits in memory.

A language model ends in logits z = features W^T + b, float[rows, vocabulary]: by far its largest tensor. Both losses that
read it have gradients in closed form,

    hard  mean over labelled rows of  -log softmax(z)[label]                       dz = softmax(z) - onehot(label)
    soft  mean over all rows of       T^2 KL(softmax(y / T) || softmax(z / T))     dz = T (softmax(z / T) - softmax(y / T))

with y the teacher's logits. So the forward pass goes over pieces of rows. It turns a piece's logits into their gradient in
place, and adds the piece's part to the gradients of features, W and b. The backward pass scales them. This takes four matrix
products (three of the student, one of the teacher) and reads the logits once, from the cache.
Source: Hsu et al. 2024, arXiv:2410.10989 (fused linear cross entropy), here with the distillation loss of Hinton et al.
2015, arXiv:1503.02531, section 2.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pruneonce.batch import IGNORED
from pruneonce.distillation.losses import Distillation

PIECE = 1024  # rows of a matrix product: enough for its full speed, and for few additions to the gradient of W
TILE = 16  # rows of the walk on a CPU: few enough for its cache


class Head(NamedTuple):
    """The last linear of a language model and what it reads: logits = features weight^T + bias. Also their gradients."""

    features: Tensor  # float[rows, hidden]
    weight: Tensor  # float[vocabulary, hidden]
    bias: Tensor | None  # float[vocabulary]


class Losses(NamedTuple):
    """loss = hard_weight * hard + soft_weight * soft; a gradient flows through `loss` alone."""

    loss: Tensor
    hard: Tensor
    soft: Tensor


class _Weights(NamedTuple):
    hard: float | Tensor
    soft: float
    temperature: float


def distilled(student: Head, labels: Tensor, teacher: Head | None, distillation: Distillation) -> Losses:
    """The hard loss at the rows with a label, and the soft loss at all rows.

    labels: int[rows], IGNORED where a row has none. The hard loss of no labels is 0, and so is the soft loss of no rows.
    teacher: its head at the same rows, which gets no gradient; None: the soft loss is 0.
    Products are in autocast's precision, everything between them in float32 (float64 if the weights are).
    Raises ValueError unless the temperature is > 0.
    """
    if not distillation.temperature > 0:
        raise ValueError(f"temperature must be > 0, got {distillation.temperature}")
    weights = _Weights(distillation.hard_weight, distillation.soft_weight, distillation.temperature)
    return Losses(*_WithGradients.apply(*student, partial(_distilled, labels=labels, teacher=teacher, weights=weights)))


def cross_entropy(head: Head, labels: Tensor) -> Losses:
    """The hard loss alone, at the rows with a label; `soft` is 0. labels: as in `distilled`."""
    weights = _Weights(hard=1.0, soft=0.0, temperature=1.0)
    return Losses(*_WithGradients.apply(*head, partial(_distilled, labels=labels, teacher=None, weights=weights)))


class _WithGradients(torch.autograd.Function):
    """A loss that comes with the gradients of its head."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, compute: Callable[[Head], tuple[Losses, Head]]
    ) -> Losses:
        losses, gradients = compute(Head(features, weight, bias))
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses.hard, losses.soft)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        rows = max(1, len(ctx.saved_tensors[0]))
        return *(None if saved is None else saved * (scale / rows) for saved in ctx.saved_tensors), None


def _distilled(student: Head, labels: Tensor, teacher: Head | None, weights: _Weights) -> tuple[Losses, Head]:
    """The losses, and their gradients times the number of rows: divided by it they might underflow in float16."""
    rows, device = len(student.features), student.features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else student.weight.dtype
    exact = torch.promote_types(dtype, torch.float32)
    labelled = (labels != IGNORED).sum().clamp(min=1).to(exact)
    scaled = weights._replace(hard=weights.hard * rows / labelled)
    d_features, d_weight = torch.empty_like(student.features), torch.zeros_like(student.weight, dtype=exact)
    d_bias, sums = d_weight.new_zeros(len(d_weight)), d_weight.new_zeros(2)
    with torch.autocast(device, enabled=False):
        product = _Products(student, dtype, exact)
        teacher_product = _Products(teacher, dtype, exact) if teacher else None
        for piece in _slices(rows, PIECE):
            z, y = product(piece), teacher_product(piece) if teacher_product else None
            for tile in _slices(len(z), TILE if device == "cpu" else PIECE):
                teacher_logits = y[tile] + teacher_product.bias if teacher_product and y is not None else None
                d, parts = _tile(z[tile] + product.bias, teacher_logits, labels[piece][tile], scaled)
                sums += parts
                d_bias += d.sum(0)
                z[tile] = d
            d_features[piece] = z @ product.weight
            d_weight += z.T @ product.features[piece]
    hard, soft = sums[0] / labelled, sums[1] / max(1, rows)
    loss = weights.hard * hard + weights.soft * soft
    return Losses(loss, hard, soft), Head(d_features, d_weight, None if student.bias is None else d_bias)


class _Products:
    """features weight^T, a piece of rows at a time, all in one buffer: new memory is slow to write to."""

    def __init__(self, head: Head, dtype: torch.dtype, exact: torch.dtype):
        self.features, self.weight = head.features.to(dtype), head.weight.to(dtype)
        self.bias = head.weight.new_zeros(len(head.weight), dtype=exact) if head.bias is None else head.bias.to(exact)
        self.buffer = self.weight.new_empty(min(PIECE, len(head.features)), len(head.weight))

    def __call__(self, piece: slice) -> Tensor:
        features = self.features[piece]
        return torch.mm(features, self.weight.T, out=self.buffer[: len(features)])


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]


def _tile(z: Tensor, y: Tensor | None, labels: Tensor, weights: _Weights) -> tuple[Tensor, Tensor]:
    """The gradient of the losses' weighted sum by the logits z, and the two losses, all summed over rows."""
    soft, d = z.new_zeros(()), torch.zeros_like(z)
    if y is not None:
        soft, d = _soft(z, y, weights.temperature)
        d *= weights.soft
    chosen = (labels != IGNORED).nonzero().squeeze(1)
    hard, d_hard = _hard(z[chosen], labels[chosen])
    d.index_add_(0, chosen, d_hard.mul_(weights.hard))
    return d, torch.stack([hard, soft])


def _hard(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy and its gradient."""
    q, logsumexp = _softmax(z)
    at = torch.arange(len(z), device=z.device), labels
    loss = (logsumexp - z[at]).sum()
    q[at] -= 1
    return loss, q


def _soft(z: Tensor, y: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 KL and its gradient."""
    z, y = z / temperature, y / temperature
    (q, student_sum), (p, teacher_sum) = _softmax(z), _softmax(y)
    divergence = torch.dot(p.flatten(), y.sub_(z).flatten()) + (student_sum - teacher_sum).sum()
    return temperature**2 * divergence, q.sub_(p).mul_(temperature)


def _softmax(z: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(z), and logsumexp(z) = largest logit - log(largest probability), which takes no second exp."""
    p = z.softmax(-1)
    return p, z.amax(-1) - p.amax(-1).log()
