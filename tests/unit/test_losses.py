"""Distillation losses against their definitions in float64."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pruneonce.distillation.losses import SMALLEST, attention_loss, hidden_loss, inner_losses, outputs_for, soft_loss
from tests.conftest import distillation


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


def test_of_bf16_inputs_the_losses_are_those_of_the_same_numbers():
    """A bf16 model gives bf16 logits and states: the sums over them are in float32."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(64, 30, 48, generator=draw).bfloat16() for _ in range(2))
    looks = [torch.randn(4, 2, 30, 30, generator=draw).softmax(-1).bfloat16() for _ in range(2)]
    mask = torch.ones(4, 30, dtype=torch.int64)
    for loss, one, other in (
        (lambda s, t: soft_loss(s, t, 2.0), student, teacher),
        (lambda s, t: hidden_loss([s], [t]), student, teacher),
        (lambda s, t: attention_loss([s], [t], mask), *looks),
    ):
        assert float(loss(one, other)) == pytest.approx(float(loss(one.double(), other.double())), rel=1e-4)


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


def attentions(seed: int, mask: np.ndarray, layers: int = 3, heads: int = 2) -> list[np.ndarray]:
    """Where models look: float64[batch, heads, length, length] a layer, nothing at padding."""
    draw = np.random.default_rng(seed)
    scores = draw.normal(size=(layers, len(mask), heads, mask.shape[1], mask.shape[1])) * 2
    return list(softmax(np.where(mask[:, None, None, :] == 1, scores, -np.inf)))


MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def test_attention_loss_is_its_definition():
    student, teacher = attentions(1, MASK), attentions(2, MASK)
    divergences = [
        sum(p * np.log(p / q) for p, q in zip(ps[b, h, i], qs[b, h, i], strict=True) if p > 0)
        for qs, ps in zip(student, teacher, strict=True)
        for b, h, i in np.ndindex(2, 2, 5)
        if MASK[b, i]
    ]
    assert len(divergences) == 3 * 2 * 8
    found = attention_loss([torch.tensor(q) for q in student], [torch.tensor(p) for p in teacher], torch.tensor(MASK))
    assert float(found) == pytest.approx(np.mean(divergences), rel=1e-5)


def test_attention_loss_ignores_where_padding_looks():
    student, teacher = attentions(1, MASK), attentions(2, MASK)
    other = [layer.copy() for layer in student]
    for layer in other:
        layer[1, :, 3:] = softmax(np.random.default_rng(3).normal(size=(2, 2, 5)))
    mask = torch.tensor(MASK)
    losses = [attention_loss(list(map(torch.tensor, s)), list(map(torch.tensor, teacher)), mask) for s in (student, other)]
    assert losses[0] == losses[1] > 0
    assert attention_loss(list(map(torch.tensor, other)), list(map(torch.tensor, teacher))) != losses[0]


def test_attention_loss_is_0_for_the_teacher_and_finite_where_the_student_looks_away():
    teacher = [torch.tensor(layer, requires_grad=True) for layer in attentions(2, MASK)]
    assert float(attention_loss(teacher, teacher, torch.tensor(MASK)).detach()) == pytest.approx(0, abs=1e-6)
    away = [torch.eye(5).expand(2, 2, 5, 5).clone().requires_grad_() for _ in teacher]
    loss = attention_loss(away, teacher, torch.tensor(MASK))
    assert 1 < float(loss.detach()) < -np.log(SMALLEST)
    loss.backward()
    assert all(torch.isfinite(layer.grad).all() for layer in away)
    assert all(layer.grad is None for layer in teacher)


@pytest.mark.parametrize("counts", [(0, 0), (1, 2)])
def test_attention_loss_wants_as_many_layers_on_both_sides(counts):
    layers = [torch.ones(1, 1, 1, 1)] * 2
    with pytest.raises(ValueError, match="as many"):
        attention_loss(layers[: counts[0]], layers[: counts[1]])


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, 0.0), (0.0, 2.0), (0.5, 0.5)])
def test_inner_losses_are_those_with_a_weight(weights):
    weights = dict(zip(("hidden", "attention"), weights, strict=True))
    mask, states = torch.tensor(MASK), [torch.randn(4, 2, 5, 3) for _ in range(2)]
    looks = [[torch.tensor(layer) for layer in attentions(seed, MASK)] for seed in (1, 2)]
    student, teacher = (SimpleNamespace(hidden_states=list(s), attentions=a) for s, a in zip(states, looks, strict=True))
    settings = distillation(hidden_weight=weights["hidden"], attention_weight=weights["attention"])
    found = inner_losses(student, teacher, mask, settings)
    wanted = {
        "hidden": hidden_loss(list(states[0][1:]), list(states[1][1:]), mask),
        "attention": attention_loss(*looks, mask),
    }
    assert found == {name: (weights[name], loss) for name, loss in wanted.items() if weights[name] > 0}
    assert outputs_for(settings) == {
        "output_hidden_states": weights["hidden"] > 0,
        "output_attentions": weights["attention"] > 0,
    }
