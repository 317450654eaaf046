"""The losses and the score that every kind shares, on a tiny BERT."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from pruneonce import kinds, tasks
from pruneonce.answering import QuestionAnswering
from pruneonce.classification import Classification, MultiLabel, Regression
from pruneonce.distillation import attention_loss, hidden_loss, soft_loss
from pruneonce.errors import DataError, ModelError
from pruneonce.tagging import TokenClassification
from tests.conftest import random_classifier

KIND = Classification("accuracy", ["a", "b", "c"])
EACH = [
    KIND,
    Regression("pearson"),
    MultiLabel("micro_f1", ["a", "b"]),
    TokenClassification("entity_f1", ["O", "B-X"]),
    QuestionAnswering("f1", 8, 30, 20, None),
    QuestionAnswering("exact_match", 8, 30, 20, 0.5),
]


def full(model, batch):
    with torch.no_grad():
        return model(batch["input_ids"], batch["attention_mask"], output_hidden_states=True, output_attentions=True)


@pytest.mark.parametrize("kind", EACH, ids=lambda kind: f"{type(kind).__name__}-{kind.metric}")
def test_a_task_travels_with_its_splits(tmp_path, kind):
    kinds.save(kind, tmp_path)
    assert kinds.load(tmp_path) == kind
    assert json.loads((tmp_path / "task.json").read_text())["metric"] == kind.metric
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind.metric = "other"


@pytest.mark.parametrize("kind", EACH[3:5], ids=["tags", "answers"])
def test_a_tokenizer_that_does_not_say_where_a_token_comes_from(kind):
    with pytest.raises(ModelError, match="expected a tokenizer in Rust"):
        kind.encode([], SimpleNamespace(is_fast=False), max_tokens=40)


def test_splits_that_do_not_say_what_they_are(tmp_path):
    with pytest.raises(DataError, match=r"expected task\.json in"):
        kinds.load(tmp_path)


def test_hard_loss_is_the_kinds_own(classifier, batch):
    found = kinds.hard_loss(KIND)(classifier, batch)
    assert set(found) == {"loss"}
    log_p = full(classifier, batch).logits.double().log_softmax(-1)
    expected = -log_p[torch.arange(4), batch["labels"]].mean()
    assert float(found["loss"].detach()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("soft_ratio", "hidden_weight", "attention_weight"), [(1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.3, 2.0, 0.0), (0.3, 2.0, 3.0)]
)
def test_the_distilled_loss_is_the_weighted_sum_of_its_parts(classifier, batch, soft_ratio, hidden_weight, attention_weight):
    teacher, mask = random_classifier(1), batch["attention_mask"]
    weights = {"soft_ratio": soft_ratio, "hidden_weight": hidden_weight, "attention_weight": attention_weight}
    parts = kinds.distilled_loss(KIND, teacher, temperature=2.0, **weights)(classifier, batch)
    ours, theirs = full(classifier, batch), full(teacher, batch)
    wanted = {
        "hard": F.cross_entropy(ours.logits, batch["labels"]),
        "soft": soft_loss(ours.logits, theirs.logits, 2.0),
        "hidden": hidden_loss(ours.hidden_states[1:], theirs.hidden_states[1:], mask),
        "attention": attention_loss(ours.attentions, theirs.attentions, mask),
    }
    scale = {"hard": 1 - soft_ratio, "soft": soft_ratio, "hidden": hidden_weight, "attention": attention_weight}
    wanted["loss"] = sum((scale[name] * part for name, part in wanted.items()), torch.zeros(()))
    for name, part in parts.items():
        torch.testing.assert_close(part.detach(), wanted[name], atol=1e-5, rtol=1e-5, msg=name)
    assert {"hidden", "attention"} & set(parts) == {n for n in ("hidden", "attention") if scale[n] > 0}
    assert {"loss", "hard", "soft"} <= set(parts)


def test_fault_5_the_teacher_gets_no_gradient_and_is_no_part_of_the_student(classifier, batch):
    teacher, names = random_classifier(1), set(classifier.state_dict())
    loss = kinds.distilled_loss(KIND, teacher, temperature=2.0, soft_ratio=0.5, hidden_weight=1.0, attention_weight=1.0)
    loss(classifier, batch)["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert classifier.classifier.weight.grad.abs().sum() > 0
    assert set(classifier.state_dict()) == names


class Fixed(nn.Module):
    """Answers the class that its second token names."""

    def forward(self, input_ids, attention_mask):
        assert not self.training
        return SequenceClassifierOutput(logits=F.one_hot(input_ids[:, 1], 3).float())


def test_the_score_is_that_of_all_rows_whatever_their_batch(engine, tokenizer):
    answers, labels = [0, 1, 2, 2, 1] * 8, [0, 1, 2, 1, 0] * 8
    ids = [[2, answer, *[9] * (i % 7), 3] for i, answer in enumerate(answers)]
    split = Dataset.from_dict({"input_ids": ids, "label": labels})
    assert kinds.score(Fixed().train(), KIND, split, tokenizer, engine=engine) == pytest.approx(3 / 5)


def test_answers_come_back_in_the_order_of_the_rows(tokenizer):
    ids = [[2, *[9] * (10 - i), 3] for i in range(8)]
    split = Dataset.from_dict({"input_ids": ids, "label": [0] * 8})
    batches = tasks.evaluation_batches(split, KIND, tokenizer, batch_size=3)
    found = tasks.in_order((batch, batch["attention_mask"].sum(1).numpy()) for batch in batches)
    assert np.array(found).tolist() == [len(row) for row in ids]
