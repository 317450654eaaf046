"""What every kind of task shares: the sum of its losses, and its score in the order of the split."""

import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from pruneonce import kinds
from pruneonce.classification import Classification
from pruneonce.distillation import attention_loss, hidden_loss, soft_loss
from pruneonce.errors import DataError
from tests.conftest import random_classifier

KIND = Classification("accuracy", ["a", "b", "c"])


def full(model, batch):
    with torch.no_grad():
        return model(batch["input_ids"], batch["attention_mask"], output_hidden_states=True, output_attentions=True)


def test_a_teacher_learns_from_the_labels(classifier, batch):
    found = kinds.hard_loss(KIND)(classifier, batch)
    assert set(found) == {"loss"}
    torch.testing.assert_close(found["loss"].detach(), F.cross_entropy(full(classifier, batch).logits, batch["labels"]))


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


def test_the_score_is_over_all_rows_whatever_their_order_in_batches(engine, tokenizer):
    """Longer rows come later in a batch of evaluation; 33 rows are two batches."""
    said = [0, 1, 2] * 11
    ids = [[1, answer, *[5] * (len(said) - i), 2] for i, answer in enumerate(said)]
    right = [0, 1, 1] * 11
    split = Dataset.from_dict({"label": right, "input_ids": ids})
    assert kinds.score(Fixed().train(), KIND, split, tokenizer, engine=engine) == pytest.approx(2 / 3)


def test_what_a_task_is_travels_with_its_splits(tmp_path):
    kinds.save(KIND, tmp_path)
    assert kinds.load(tmp_path) == KIND
    with pytest.raises(DataError, match=r"expected task\.json in .*elsewhere, found none"):
        kinds.load(tmp_path / "elsewhere")
