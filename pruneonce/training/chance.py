"""What answers are worth that know nothing of the text they answer: a model's own, dealt out to the rows at random."""

import numpy as np
from torch import nn

from pruneonce.training.task import Task

SHUFFLES = 100


def scores(task: Task, model: nn.Module, split: str, *, seed: int) -> tuple[float, float]:
    """The task's metric of a model on a split, and what one shuffle in twenty of its answers reaches (95th percentile).

    A model whose score is no higher has not shown that it reads: one that says the same of every text scores the same
    however its answers are dealt out. Source: permutation tests, Ojala & Garriga 2010.
    Tags and spans fit no other text than their own; chance is 0 for them, and next to it for entities and answers.
    """
    answers = task.answers(model, split)
    score = task.metric(answers, split)
    if answers[0].ndim > 1:
        return score, 0.0
    draw = np.random.default_rng(seed)
    shuffled = [task.metric([answers[i] for i in draw.permutation(len(answers))], split) for _ in range(SHUFFLES)]
    return score, float(np.percentile(shuffled, 95))
