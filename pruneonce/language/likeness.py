"""How like its teacher a student is, in numbers that need no label: its hidden states, and which texts it finds alike."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from pruneonce.batch import Batch, inputs, pieces
from pruneonce.sparsity.masks import body

TEXTS = 2000  # whose pairs are compared, at most: two million pairs, which take 200 MB


@torch.inference_mode()
def likeness(student: nn.Module, teacher: nn.Module, batches: Iterable[Batch], *, engine: Accelerator) -> dict[str, float]:
    """Compare two language models of one shape on the texts of some batches.

    hidden_error: mean over layers of |student - teacher|^2 / |teacher|^2 over all tokens, >= 0, as `losses.hidden_loss`.
    similarity: Spearman's correlation, in [-1, 1], of the cosines between all pairs of the first TEXTS texts, student
    against teacher. The vector of a text is the mean of its tokens' last hidden states. 0 where all pairs are equally alike
    for a model, or there are fewer than two pairs.
    """
    errors: Any = 0
    sizes: Any = 0
    vectors: tuple[list[Tensor], list[Tensor]] = ([], [])
    were_training = [model.training for model in (student, teacher)]
    for batch in (piece for whole in batches for piece in pieces(inputs(whole), engine)):
        batch = {name: tensor.to(engine.device) for name, tensor in batch.items()}
        inside = batch["attention_mask"].unsqueeze(-1)
        states = []
        for model, found in zip((student, teacher), vectors, strict=True):
            with engine.autocast():
                out = body(model.eval().to(engine.device))(**batch, output_hidden_states=True)
            states.append(torch.stack([layer.float() * inside for layer in out.hidden_states[1:]]))
            found.append(F.normalize(states[-1][-1].sum(1) / inside.sum(1), dim=-1))
        errors = errors + (states[0] - states[1]).square().sum((1, 2, 3))
        sizes = sizes + states[1].square().sum((1, 2, 3))
    for model, training in zip((student, teacher), were_training, strict=True):
        model.train(training)
    alike = [_cosines(torch.cat(found)[:TEXTS]) for found in vectors]
    flat = any(len(np.unique(values)) < 2 for values in alike)
    return {
        "hidden_error": float((errors / sizes).mean()),
        "similarity": 0.0 if flat else float(stats.spearmanr(*alike).statistic),
    }


def _cosines(vectors: Tensor) -> np.ndarray:
    """float[n (n - 1) / 2]: the cosine of each pair of the n vectors, which have length 1."""
    first, second = torch.triu_indices(len(vectors), len(vectors), 1)
    return (vectors @ vectors.T)[first, second].cpu().numpy()
