"""The losses, the training and the score that all tasks share, on a tiny BERT."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from pruneonce.distillation.losses import attention_loss, hidden_loss, soft_loss
from pruneonce.models import checkpoint
from pruneonce.tasks.batches import Batches, evaluation_batches, in_split_order
from pruneonce.tasks.classification import Classification
from pruneonce.training import loop, schedules
from pruneonce.training.task import Task, distilled_loss, hard_loss
from tests.conftest import distillation, random_classifier

KIND = Classification("accuracy", ["a", "b", "c"])
RECIPE = SimpleNamespace(batch_size=3, max_tokens=5, learning_rate=0.01, warmup_ratio=0.3, weight_decay=0.1, clip_norm=0.7)


def full(model, batch):
    with torch.no_grad():
        return model(batch["input_ids"], batch["attention_mask"], output_hidden_states=True, output_attentions=True)


def test_hard_loss_is_the_kinds_own(classifier, batch):
    found = hard_loss(KIND)(classifier, batch)
    assert set(found) == {"loss"}
    log_p = full(classifier, batch).logits.double().log_softmax(-1)
    expected = -log_p[torch.arange(4), batch["labels"]].mean()
    assert float(found["loss"].detach()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("soft_ratio", "hidden_weight", "attention_weight"), [(1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.3, 2.0, 0.0), (0.3, 2.0, 3.0)]
)
def test_the_distilled_loss_is_the_weighted_sum_of_its_parts(classifier, batch, soft_ratio, hidden_weight, attention_weight):
    teacher, mask = random_classifier(1), batch["attention_mask"]
    weights = {"hidden_weight": hidden_weight, "attention_weight": attention_weight}
    of_logits = {"hard_weight": 1 - soft_ratio, "soft_weight": soft_ratio}
    parts = distilled_loss(KIND, teacher, distillation(**of_logits, **weights))(classifier, batch)
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
    teacher = random_classifier(1)
    weights = {"hard_weight": 0.5, "soft_weight": 0.5, "hidden_weight": 1.0, "attention_weight": 1.0}
    loss = distilled_loss(KIND, teacher, distillation(**weights))
    answered = []
    teacher.register_forward_hook(lambda model, inputs, out: answered.append(out.logits.requires_grad))
    loss(classifier, batch)["loss"].backward()
    assert answered == [False], "nothing of its forward pass is kept for a gradient"
    assert all(p.grad is None for p in teacher.parameters())
    assert classifier.classifier.weight.grad.abs().sum() > 0


class Fixed(nn.Module):
    """Answers the class that its second token names."""

    def forward(self, input_ids, attention_mask):
        assert not self.training
        return SequenceClassifierOutput(logits=F.one_hot(input_ids[:, 1], 3).float())


def test_the_score_is_that_of_all_rows_whatever_their_batch(engine, tokenizer):
    answers, labels = [0, 1, 2, 2, 1] * 8, [0, 1, 2, 1, 0] * 8
    ids = [[2, answer, *[9] * (i % 7), 3] for i, answer in enumerate(answers)]
    split = Dataset.from_dict({"input_ids": ids, "label": labels})
    task = Task(KIND, tokenizer, {"validation": split}, engine)
    assert task.score(Fixed().train(), "validation") == pytest.approx(3 / 5)
    assert task.metric(task.logits(Fixed(), "validation"), "validation") == pytest.approx(3 / 5)


def test_a_model_that_computes_in_bf16_is_scored_in_float32(classifier, tokenizer):
    """numpy has no bf16: without the conversion there is no score at all."""
    in_bf16 = SimpleNamespace(device=torch.device("cpu"), autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    split = Dataset.from_dict({"input_ids": [[2, i, 7, 3] for i in range(5, 25)], "label": [0] * 20})
    task = Task(KIND, tokenizer, {"test": split}, in_bf16)
    logits = np.array(task.logits(classifier, "test"))
    assert logits.dtype == np.float32
    assert set(torch.tensor(logits).bfloat16().float().flatten().tolist()) == set(logits.flatten().tolist())
    task.score(classifier, "test")


def test_answers_come_back_in_the_order_of_the_rows(tokenizer):
    ids = [[2, *[9] * (10 - i), 3] for i in range(8)]
    split = Dataset.from_dict({"input_ids": ids, "label": [0] * 8})
    batches = evaluation_batches(split, KIND, tokenizer, batch_size=3)
    found = in_split_order((batch, batch["attention_mask"].sum(1).numpy()) for batch in batches)
    assert np.array(found).tolist() == [len(row) for row in ids]


def test_a_task_is_learned_by_its_recipe(classifier, engine, tokenizer):
    """The rate rises over its share of the steps and falls to 0; rows and their order are those of the batches."""
    rows = Dataset.from_dict({"input_ids": [[2, *[9 + i] * (1 + i % 4), 3] for i in range(10)], "label": [0, 1] * 5})
    task = Task(KIND, tokenizer, {"train": rows}, engine)
    batches, logged, seen = task.batches(RECIPE, seed=4), [], []

    def loss(model, batch):
        seen.append(batch["input_ids"])
        return hard_loss(KIND)(model, batch)

    task.fit(classifier, batches, loss, recipe=RECIPE, steps=8, log=lambda step, m: logged.append(m["learning_rate"]))
    assert logged == [schedules.linear_decay(step, steps=8, warmup=2, peak=0.01) for step in range(8)]
    expected = Batches(rows, KIND, tokenizer, batch_size=3, max_tokens=5, seed=4)
    assert len(seen) == 8
    assert all(torch.equal(ids, expected(step)["input_ids"]) for step, ids in enumerate(seen))


def test_the_loop_gets_the_recipe_s_numbers(classifier, engine, tokenizer, monkeypatch):
    found = {}
    monkeypatch.setattr(loop, "fit", lambda model, batches, loss, **numbers: found.update(numbers))
    rows = Dataset.from_dict({"input_ids": [[2, 9, 3]] * 4, "label": [0, 1] * 2})
    task = Task(KIND, tokenizer, {"train": rows}, engine)
    task.fit(classifier, task.batches(RECIPE, seed=4), hard_loss(KIND), recipe=RECIPE, steps=8, name="here")
    rate = found.pop("learning_rate")
    assert [rate(0), rate(2)] == [pytest.approx(0.01 / 3), pytest.approx(0.01)]
    assert found == {"engine": engine, "steps": 8, "weight_decay": 0.1, "clip_norm": 0.7, "seed": 4, "name": "here"}


def test_a_teacher_is_asked_and_never_trained(classifier, engine, tokenizer, tmp_path):
    checkpoint.save(classifier, tokenizer, tmp_path)
    task = Task(KIND, tokenizer, {}, engine)
    teacher = task.teacher(tmp_path, attention="eager")
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(m.p == 0 for m in teacher.modules() if isinstance(m, nn.Dropout))
    student = task.model(tmp_path, attention="eager", dropout=0.25)
    assert all(p.requires_grad for p in student.parameters())
    assert {m.p for m in student.modules() if isinstance(m, nn.Dropout)} == {0.25}
    student = task.student(tmp_path, teacher, attention="eager", dropout=0.25)
    assert {m.p for m in student.modules() if isinstance(m, nn.Dropout)} == {0.25}
