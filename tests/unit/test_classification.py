"""Sequence classification losses and accuracy on a tiny BERT."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from pruneonce import classification
from pruneonce.distillation import attention_loss, hidden_loss, soft_loss
from tests.conftest import random_classifier


def full(model, batch):
    with torch.no_grad():
        return model(batch["input_ids"], batch["attention_mask"], output_hidden_states=True)


def test_hard_loss_is_cross_entropy(classifier, batch):
    found = classification.hard_loss(classifier, batch)
    assert set(found) == {"loss"}
    log_p = full(classifier, batch).logits.double().log_softmax(-1)
    expected = -log_p[torch.arange(4), batch["labels"]].mean()
    assert float(found["loss"].detach()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("soft_ratio", "hidden_weight"), [(1.0, 0.0), (0.0, 0.0), (0.3, 2.0)])
def test_the_distilled_loss_is_the_weighted_sum_of_its_parts(classifier, batch, soft_ratio, hidden_weight):
    teacher = random_classifier(1)
    loss = classification.distilled_loss(teacher, temperature=2.0, soft_ratio=soft_ratio, hidden_weight=hidden_weight)
    parts = loss(classifier, batch)
    ours, theirs = full(classifier, batch), full(teacher, batch)
    total = (1 - soft_ratio) * F.cross_entropy(ours.logits, batch["labels"])
    total = total + soft_ratio * soft_loss(ours.logits, theirs.logits, 2.0)
    hidden = hidden_loss(ours.hidden_states[1:], theirs.hidden_states[1:], batch["attention_mask"])
    torch.testing.assert_close(parts["loss"].detach(), total + hidden_weight * hidden, atol=1e-5, rtol=1e-5)
    assert ("hidden" in parts) == (hidden_weight > 0)


def test_attention_is_one_more_part(classifier, batch):
    teacher, settings = random_classifier(1), {"temperature": 2.0, "soft_ratio": 1.0, "hidden_weight": 0.0}
    plain = classification.distilled_loss(teacher, **settings)(classifier, batch)
    parts = classification.distilled_loss(teacher, **settings, attention_weight=3.0)(classifier, batch)
    layers = [
        model(batch["input_ids"], batch["attention_mask"], output_attentions=True).attentions
        for model in (classifier, teacher)
    ]
    torch.testing.assert_close(parts["attention"], attention_loss(*layers, batch["attention_mask"]))
    torch.testing.assert_close(parts["loss"], plain["loss"] + 3 * parts["attention"])
    assert set(parts) - set(plain) == {"attention"}


def test_fault_5_the_teacher_gets_no_gradient_and_is_no_part_of_the_student(classifier, batch):
    teacher, names = random_classifier(1), set(classifier.state_dict())
    loss = classification.distilled_loss(teacher, temperature=2.0, soft_ratio=0.5, hidden_weight=1.0)
    loss(classifier, batch)["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert classifier.classifier.weight.grad.abs().sum() > 0
    assert set(classifier.state_dict()) == names


class Fixed(nn.Module):
    """Answers the class that its first token names."""

    def forward(self, input_ids, attention_mask):
        assert not self.training
        return SequenceClassifierOutput(logits=F.one_hot(input_ids[:, 0], 3).float())


def test_accuracy_is_the_share_of_rows_right_over_uneven_batches(engine):
    def batch(answers, labels):
        ids = torch.tensor(answers)[:, None]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(labels)}

    batches = [batch([0, 1, 2, 2], [0, 1, 2, 1]), batch([1], [0])]
    assert classification.accuracy(Fixed().train(), batches, engine=engine) == pytest.approx(3 / 5)
