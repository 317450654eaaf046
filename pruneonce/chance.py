"""What answers are worth that know nothing of the text they answer: a model's own, dealt out to the rows at random."""

from collections.abc import Sequence

import numpy as np
from accelerate import Accelerator
from datasets import Dataset
from torch import nn

from pruneonce import kinds
from pruneonce.tasks import Kind, evaluation_batches, in_order

SHUFFLES = 100


def scores(
    model: nn.Module, kind: Kind, split: Dataset, tokenizer, *, engine: Accelerator, seed: int
) -> tuple[float, float]:
    """The task's metric of a model on a split, and what one shuffle in twenty of its answers reaches (95th percentile).

    A model whose score is no higher has not shown that it reads: one that says the same of every text scores the same
    however its answers are dealt out. Source: permutation tests, Ojala & Garriga 2010.
    Tags and spans fit no other text than their own; chance is 0 for them, and next to it for entities and answers.
    """
    answers = in_order(kinds._answers(model, kind, evaluation_batches(split, kind, tokenizer), engine))
    draw = np.random.default_rng(seed)

    def score(of: Sequence[np.ndarray]) -> float:
        total, scorers = kind.scorers(split, of)
        return scorers[kind.metric](np.arange(total))

    if answers[0].ndim > 1:
        return score(answers), 0.0
    shuffled = [score([answers[i] for i in draw.permutation(len(answers))]) for _ in range(SHUFFLES)]
    return score(answers), float(np.percentile(shuffled, 95))
