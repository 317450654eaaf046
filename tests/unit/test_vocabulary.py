"""Losses over a vocabulary in pieces, against the plain formulas on whole logits and autograd."""

import pytest
import torch
from torch.nn import functional as F

from pruneonce.batch import IGNORED
from pruneonce.distillation import vocabulary
from pruneonce.distillation.vocabulary import Head
from tests.conftest import distillation

WEIGHTS = {"hard_weight": 0.3, "soft_weight": 0.7, "temperature": 2.5}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Twenty rows are three pieces of three tiles, the last of each smaller."""
    monkeypatch.setattr(vocabulary, "PIECE", 8)
    monkeypatch.setattr(vocabulary, "TILE", 3)


def head(seed: int, dtype: torch.dtype = torch.float64, rows: int = 20, classes: int = 33) -> Head:
    draw = torch.Generator().manual_seed(seed)
    shapes = (rows, 8), (classes, 8), (classes,)
    return Head(*(torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes))


def some_labels(rows: int = 20, classes: int = 33, share: float = 0.3) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (rows,), generator=draw)
    return labels.masked_fill(torch.rand(rows, generator=draw) > share, IGNORED)


def plain(student: Head, labels, teacher: Head | None, *, hard_weight, soft_weight, temperature):
    """On whole logits, by torch's own losses."""
    z = F.linear(*student)
    hard = F.cross_entropy(z, labels, reduction="sum") / (labels != IGNORED).sum().clamp(min=1)
    if teacher is None:
        return hard_weight * hard, hard, torch.zeros_like(hard)
    z, y = z / temperature, F.linear(*teacher) / temperature
    soft = temperature**2 * F.kl_div(z.log_softmax(-1), y.softmax(-1), reduction="batchmean")
    return hard_weight * hard + soft_weight * soft, hard, soft


def distilled(student: Head, labels: torch.Tensor, teacher: Head | None, **weights) -> vocabulary.Losses:
    return vocabulary.distilled(student, labels, teacher, distillation(**weights))


def gradients(compute, student: Head, *arguments, **weights) -> list[torch.Tensor]:
    leaves = Head(*(part.clone().requires_grad_() for part in student))
    return torch.autograd.grad(5 * compute(leaves, *arguments, **weights)[0], leaves)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("with_teacher", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_losses_and_gradients_are_those_of_whole_logits(dtype, tolerance, with_teacher, share, temperature):
    weights = WEIGHTS | {"temperature": temperature}
    case = (head(1, dtype), some_labels(share=share), head(2, dtype) if with_teacher else None)
    close = {"atol": tolerance, "rtol": tolerance}
    for found, wanted in zip(distilled(*case, **weights), plain(*case, **weights), strict=True):
        torch.testing.assert_close(found, wanted, **close)
    for found, wanted in zip(gradients(distilled, *case, **weights), gradients(plain, *case, **weights), strict=True):
        torch.testing.assert_close(found, wanted, **close)


def test_gradients_are_slopes():
    leaves = [part.requires_grad_() for part in head(1, rows=9, classes=7)]
    teacher, labels = head(2, rows=9, classes=7), some_labels(9, 7)
    assert torch.autograd.gradcheck(lambda *parts: distilled(Head(*parts), labels, teacher, **WEIGHTS).loss, leaves)


def test_logits_far_apart_neither_overflow_nor_lose_the_loss():
    far = head(1, torch.float32)
    far = far._replace(features=far.features * 100, bias=far.bias + 1e3)
    case = (far, some_labels(), head(2, torch.float32))
    exact = (Head(*(p.double() for p in case[0])), case[1], Head(*(p.double() for p in case[2])))
    found, wanted = distilled(*case, **WEIGHTS), plain(*exact, **WEIGHTS)
    for one, other in zip(found, wanted, strict=True):
        assert float(one) == pytest.approx(float(other), rel=1e-5)
    assert all(torch.isfinite(g).all() for g in gradients(distilled, *case, **WEIGHTS))


def test_a_head_without_bias():
    student, teacher, labels = head(1)._replace(bias=None), head(2)._replace(bias=None), some_labels()
    student.weight.requires_grad_()
    found = distilled(student, labels, teacher, **WEIGHTS)
    torch.testing.assert_close(found.loss, plain(student, labels, teacher, **WEIGHTS)[0])
    found.loss.backward()
    assert student.weight.grad.abs().sum() > 0


def test_no_rows_have_loss_0_and_gradient_0():
    none = head(1, rows=0)
    found = gradients(distilled, none, some_labels(0), head(2, rows=0), **WEIGHTS)
    assert float(distilled(none, some_labels(0), head(2, rows=0), **WEIGHTS).loss) == 0
    assert [tuple(g.shape) for g in found] == [(0, 8), (33, 8), (33,)]
    assert not any(g.any() for g in found)


def test_a_weight_that_is_also_the_embedding_gets_both_gradients():
    (_, weight, bias), labels, tokens = head(1), some_labels(), torch.arange(20)

    def total(compute):
        shared = weight.clone().requires_grad_()
        compute(Head(shared[tokens] * 2, shared, bias), labels, head(2), **WEIGHTS)[0].backward()
        return shared.grad

    torch.testing.assert_close(total(distilled), total(plain))


def test_the_backward_may_run_twice():
    student = Head(*(part.requires_grad_() for part in head(1)))
    loss = distilled(student, some_labels(), head(2), **WEIGHTS).loss
    first = torch.autograd.grad(loss, student, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(loss, student), strict=True))


def test_the_teacher_gets_no_gradient_and_only_the_loss_gives_one():
    student, teacher = (Head(*(part.requires_grad_() for part in head(seed))) for seed in (1, 2))
    found = distilled(student, some_labels(), teacher, **WEIGHTS)
    assert [part.requires_grad for part in found] == [True, False, False]
    found.loss.backward()
    assert all(part.grad is None for part in teacher)


def test_autocast_multiplies_in_its_precision_and_answers_in_float32():
    case = (head(1, torch.float32), some_labels(), head(2, torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, slopes = distilled(*case, **WEIGHTS), gradients(distilled, *case, **WEIGHTS)
    assert {part.dtype for part in (*found, *slopes)} == {torch.float32}
    assert float(found.loss) == pytest.approx(float(plain(*case, **WEIGHTS)[0]), rel=0.02)
    for one, other in zip(slopes, gradients(plain, *case, **WEIGHTS), strict=True):
        assert (one - other).norm() < 0.02 * other.norm()
    assert not torch.equal(slopes[0], gradients(distilled, *case, **WEIGHTS)[0])


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_is_positive(temperature):
    with pytest.raises(ValueError, match="temperature"):
        distilled(head(1), some_labels(), head(2), **WEIGHTS | {"temperature": temperature})
