"""Movement pruning: a weight is worth how far training moves it away from zero, not how large it is.

With W' = W * M, the weight in use, every backward pass adds to the score of each weight

    S  <-  S - dL/dW' * W        element by element

and the lowest scores are pruned. dL/dW' is not masked (the mask's gradient passes straight through), so a pruned weight is
scored as well and may come back. A weight that was set to zero moves nowhere: its score stands still.
Source: Sanh et al. 2020, arXiv:2005.07683, section 4, hard movement pruning: S(T) = -alpha_S sum_{t<T} dL/dW'(t) W(t). That
sum itself, with alpha_S = 1, on which no ranking depends; the authors' code has Adam take the steps of S instead.

It wants many steps, as scores start from nothing. MiniLM-L6 to 85 % over 24 of 40 steps of 8 blocks of 128 tokens, one seed,
the default losses, held-out MLM loss: magnitude 7.16, movement 7.75; from a first jump to 70 % by second order, magnitude
6.54, second order throughout 6.21. The authors prune over tens of thousands of steps.
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from pruneonce.sparsity.masks import MaskedLinear


class ScoredLinear(MaskedLinear):
    """A masked linear that keeps its movement score, float[out, in], in a buffer: a resumed run goes on with it."""

    score: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__(linear)
        self.register_buffer("score", torch.zeros_like(linear.weight, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.effective_weight
        if weight.requires_grad:
            weight.register_hook(self._move)
        return F.linear(x, weight, self.bias)

    @torch.no_grad()
    def _move(self, gradient: Tensor) -> None:
        self.score.sub_(gradient * self.weight)


def score(linear: MaskedLinear) -> Tensor:
    """The `pruning.Score` of movement. Raises TypeError for a linear that has kept none."""
    if not isinstance(linear, ScoredLinear):
        raise TypeError(f"expected a ScoredLinear, found {type(linear).__name__}: wrap with it before training")
    return linear.score


@torch.no_grad()
def share_scores(model: nn.Module, engine: Accelerator) -> None:
    """Every process takes the mean of all their scores: call it after each step, as their gradients are shared after each.

    Data parallelism overwrites the buffers of all processes by those of the first at the next forward pass. What is saved
    between the two is the first's: resumed on several processes, a run lacks the others' share of one step's scores.
    """
    if engine.num_processes > 1:
        for linear in (m for m in model.modules() if isinstance(m, ScoredLinear)):
            linear.score.copy_(engine.reduce(linear.score, reduction="mean"))
