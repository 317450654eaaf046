"""The score that a model's answers reach when they are dealt out to the rows at random."""

import numpy as np
from torch import nn

from pruneonce.training.task import Task

SHUFFLES = 100


def scores(task: Task, model: nn.Module, split: str, *, seed: int) -> tuple[float, float]:
    """The task's metric of a model on a split, and the 95th percentile of it over shuffles of the model's answers.

    A model whose score is no higher has not shown that it reads: a model that answers the same for every text gets the
    same score from every shuffle. Source: permutation tests, Ojala & Garriga 2010.
    Tags and spans fit no other text than their own. Chance is 0 for them, and almost 0 for entities and answers.
    """
    logits = task.logits(model, split)
    score = task.metric(logits, split)
    if logits[0].ndim > 1:
        return score, 0.0
    draw = np.random.default_rng(seed)
    shuffled = [task.metric([logits[i] for i in draw.permutation(len(logits))], split) for _ in range(SHUFFLES)]
    return score, float(np.percentile(shuffled, 95))
