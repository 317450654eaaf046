"""The score that a model's answers reach when they are dealt out to the rows at random."""

import numpy as np
from torch import nn

from pruneonce.training.task import Task

SHUFFLES = 100


def scores(task: Task, model: nn.Module, split: str, *, seed: int) -> tuple[float, float]:
    """Return the task's metric of a model on a split, and the 95th percentile of it over shuffles of the model's answers.

    A score that is no higher does not show that the model reads the texts. For a model that gives every text the same
    answer, all shuffles have the same score. Tags and spans fit no other text than their own: chance is 0 for them.
    Source: permutation tests, Ojala & Garriga 2010.
    """
    logits = task.logits(model, split)
    score = task.metric(logits, split)
    if logits[0].ndim > 1:
        return score, 0.0
    draw = np.random.default_rng(seed)
    shuffled = [task.metric([logits[i] for i in draw.permutation(len(logits))], split) for _ in range(SHUFFLES)]
    return score, float(np.percentile(shuffled, 95))
