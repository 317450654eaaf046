"""Distillation losses against their definitions in float64."""

import numpy as np
import pytest
import torch

from pruneonce.distillation import hidden_loss, soft_loss


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 6)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.5])
def test_soft_loss_is_its_definition(shape, temperature):
    draw = np.random.default_rng(0)
    student, teacher = draw.normal(size=shape) * 3, draw.normal(size=shape) * 3
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum(-1).mean()
    found = soft_loss(torch.tensor(student), torch.tensor(teacher), temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_soft_loss_is_0_for_logits_a_constant_apart():
    logits = torch.randn(4, 9)
    assert float(soft_loss(logits, logits + torch.arange(4.0)[:, None], 2.0)) == pytest.approx(0, abs=1e-6)


def test_soft_loss_teaches_the_student_and_not_the_teacher():
    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    soft_loss(student, teacher, 2.0).backward()
    assert teacher.grad is None
    # d/ds T^2 KL = T (q - p) / rows
    p, q = softmax(teacher.detach().double().numpy() / 2), softmax(student.detach().double().numpy() / 2)
    np.testing.assert_allclose(student.grad.numpy(), 2 * (q - p) / 3, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_soft_loss_wants_a_positive_temperature(temperature):
    with pytest.raises(ValueError, match="temperature"):
        soft_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature)


def test_hidden_loss_is_1_for_a_zero_student_and_0_for_the_teacher():
    teacher = [torch.randn(2, 5, 8) * scale for scale in (0.01, 1.0, 100.0)]
    assert float(hidden_loss([torch.zeros_like(t) for t in teacher], teacher)) == pytest.approx(1)
    assert float(hidden_loss(teacher, teacher)) == 0


def test_hidden_loss_by_hand_weighs_layers_the_same_and_ignores_padding():
    teacher = [torch.tensor([[[3.0, 4.0], [1.0, 1.0]]]), torch.tensor([[[10.0, 0.0], [9.0, 9.0]]])]
    student = [torch.tensor([[[3.0, 3.0], [8.0, 8.0]]]), torch.tensor([[[5.0, 0.0], [0.0, 7.0]]])]
    found = hidden_loss(student, teacher, torch.tensor([[1, 0]]))
    assert float(found) == pytest.approx((1 / 25 + 25 / 100) / 2)


def test_hidden_loss_gives_the_teacher_no_gradient():
    student, teacher = torch.randn(1, 2, 3, requires_grad=True), torch.randn(1, 2, 3, requires_grad=True)
    hidden_loss([student], [teacher]).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("counts", [(0, 0), (1, 2)])
def test_hidden_loss_wants_as_many_states_on_both_sides(counts):
    states = [torch.ones(1, 1, 1)] * 2
    with pytest.raises(ValueError, match="as many"):
        hidden_loss(states[: counts[0]], states[: counts[1]])
