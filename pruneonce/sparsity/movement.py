"""Movement pruning: a weight is worth how far training moves it away from zero, not how large it is.

With W' = W * M, the weight in use, every backward pass adds to the score of each weight

    S  <-  S - dL/dW' * W        element by element

and the lowest scores are pruned. dL/dW' is not masked (the mask's gradient passes straight through), so a pruned weight is
scored as well and may come back. A weight that was set to zero moves nowhere: its score stands still.
Source: Sanh et al. 2020, arXiv:2005.07683, section 4, hard movement pruning: S(T) = -alpha_S sum_{t<T} dL/dW'(t) W(t).
Here alpha_S = 1, on which no ranking depends. The authors' code lets Adam take the steps of S instead.
Scores start at 0, so this criterion needs many steps: the authors prune over tens of thousands.
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from pruneonce.sparsity import masks
from pruneonce.sparsity.criterion import Criterion
from pruneonce.sparsity.masks import MaskedLinear


class ScoredLinear(MaskedLinear):
    """A masked linear with its movement score, float[out, in], in a buffer. A resumed run continues with it."""

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
    """float[out, in]: the movement score. Raises TypeError for a linear that has none."""
    if not isinstance(linear, ScoredLinear):
        raise TypeError(f"expected a ScoredLinear, found {type(linear).__name__}: wrap with it before training")
    return linear.score


@torch.no_grad()
def share_scores(model: nn.Module, engine: Accelerator) -> None:
    """Set the scores of every process to the mean over processes. Call it before each step.

    Data parallelism copies the buffers of the first process to the others at the next forward pass. A checkpoint holds
    the buffers of the first process: a resumed run of several processes lacks the others' share of one step.
    """
    if engine.num_processes > 1:
        for linear in (m for m in model.modules() if isinstance(m, ScoredLinear)):
            linear.score.copy_(engine.reduce(linear.score, reduction="mean"))


class Movement(Criterion):
    """The weights of lowest movement score go."""

    linear = ScoredLinear

    def before_step(self, model: nn.Module) -> None:
        share_scores(model, self.calibration.engine)

    def prune(self, model: nn.Module, sparsity: float) -> None:
        masks.prune(model, sparsity, score=score, select=self.placement.select)
