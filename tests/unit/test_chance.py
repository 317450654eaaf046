"""What a model's answers are worth when they are dealt out to other texts than their own."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from pruneonce.tasks.classification import Classification, MultiLabel, Regression
from pruneonce.tasks.tagging import TokenClassification
from pruneonce.training import chance
from pruneonce.training.task import Task

LABELS = [0, 1, 1, 0, 1, 0, 0, 1] * 10


class Reads(nn.Module):
    """Says of a text what its second token names: 9 + answer."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, input_ids, attention_mask):
        return SequenceClassifierOutput(logits=torch.stack([self.answer(int(i) - 9) for i in input_ids[:, 1]]))


def one_hot(answer: int) -> torch.Tensor:
    return torch.eye(2)[answer]


def split(answers: list[int], labels: list) -> Dataset:
    return Dataset.from_dict(
        {"input_ids": [[2, 9 + answer, *[9] * (i % 5), 3] for i, answer in enumerate(answers)], "label": labels}
    )


@pytest.fixture
def scores(engine, tokenizer):
    """(model, kind, rows) -> score and chance on them."""
    return lambda model, kind, rows, seed=1: chance.scores(Task(kind, tokenizer, {"s": rows}, engine), model, "s", seed=seed)


@pytest.mark.parametrize("metric", ["accuracy", "f1", "macro_f1", "mcc"])
def test_a_model_that_reads_is_above_chance_and_one_that_does_not_is_not(scores, metric):
    kind = Classification(metric, ["no", "yes"])
    rows = split(LABELS, LABELS)
    score, by_chance = scores(Reads(one_hot), kind, rows)
    assert score == 1.0
    assert 0.0 < by_chance < 0.8
    for constant in (0, 1):
        same = Reads(lambda _, constant=constant: one_hot(constant))
        score, by_chance = scores(same, kind, rows)
        assert score == by_chance, "of every text the same"


def test_chance_is_what_the_hypergeometric_distribution_says(scores):
    """80 rows, half of each class, half of the answers yes: right ones are twice the overlap of two random halves."""
    from scipy.stats import hypergeom

    kind = Classification("accuracy", ["no", "yes"])
    found = [scores(Reads(one_hot), kind, split(LABELS, LABELS), seed=seed)[1] for seed in range(8)]
    assert np.mean(found) == pytest.approx(2 * hypergeom(80, 40, 40).ppf(0.95) / 80, abs=0.02)
    assert len(set(found)) > 1


def test_one_seed_one_number(scores):
    kind = Classification("mcc", ["no", "yes"])
    found = {scores(Reads(one_hot), kind, split(LABELS, LABELS), seed=7) for _ in range(3)}
    assert len(found) == 1


def test_numbers_and_labels_are_dealt_out_as_well(scores):
    numbers = split([i % 7 for i in range(80)], [float(i % 7) for i in range(80)])
    number = Reads(lambda answer: torch.tensor([float(answer)]))
    score, by_chance = scores(number, Regression("pearson"), numbers)
    assert score == pytest.approx(1.0)
    assert 0.0 < by_chance < 0.4
    many = split(LABELS, [[label] for label in LABELS])
    signs = Reads(lambda answer: 2 * one_hot(answer) - 1)
    score, by_chance = scores(signs, MultiLabel("micro_f1", ["a", "b"]), many)
    assert score == 1.0
    assert 0.3 < by_chance < 0.8


def test_tags_fit_no_other_text(scores):
    class Tags(nn.Module):
        def forward(self, input_ids, attention_mask):
            return TokenClassifierOutput(logits=torch.nn.functional.one_hot((input_ids == 10).long(), 2).float())

    ids = [[2, *[9 + (j == 0) for j in range(1 + i % 3)], 3] for i in range(6)]
    tags = [[int(token == 10) for token in row[1:-1]] for row in ids]
    rows = Dataset.from_dict({"input_ids": ids, "places": [list(range(1, len(row) - 1)) for row in ids], "label": tags})
    kind = TokenClassification("entity_f1", ["O", "B-X"])
    assert scores(Tags(), kind, rows) == (1.0, 0.0)
