"""Laws of the losses over a vocabulary, whatever the rows, the classes and the pieces."""

from unittest import mock

import torch
from hypothesis import given
from hypothesis import strategies as st

from pruneonce.distillation import vocabulary
from pruneonce.distillation.vocabulary import Head
from tests.unit.test_vocabulary import distilled, gradients, head, plain, some_labels

SHAPES = {"rows": st.integers(0, 30), "classes": st.integers(2, 40)}
CUTS = {"piece": st.integers(1, 32), "tile": st.integers(1, 32)}
WEIGHTS = {"hard_weight": st.floats(0, 2), "soft_weight": st.floats(0, 2), "temperature": st.floats(0.3, 8)}


@given(**SHAPES, **CUTS, weights=st.fixed_dictionaries(WEIGHTS), share=st.floats(0, 1))
def test_however_it_is_cut_it_is_the_plain_formula(rows, classes, piece, tile, weights, share):
    case = (head(1, rows=rows, classes=classes), some_labels(rows, classes, share), head(2, rows=rows, classes=classes))
    with mock.patch.multiple(vocabulary, PIECE=piece, TILE=tile):
        found = (*distilled(*case, **weights), *gradients(distilled, *case, **weights))
    if rows:  # torch's mean over nothing is nan
        for one, other in zip(found, (*plain(*case, **weights), *gradients(plain, *case, **weights)), strict=True):
            torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)
    assert all(torch.isfinite(part).all() for part in found)


@given(**SHAPES, temperature=st.floats(0.3, 8))
def test_a_student_with_its_teachers_logits_has_no_soft_loss_and_no_slope(rows, classes, temperature):
    student = head(1, rows=rows, classes=classes)
    teacher = Head(student.features, student.weight, student.bias + 3.0)  # softmax forgets a constant
    weights = {"hard_weight": 0.0, "soft_weight": 1.0, "temperature": temperature}
    labels = some_labels(rows, classes)
    assert abs(float(distilled(student, labels, teacher, **weights).soft)) < 1e-9
    for slope in gradients(distilled, student, labels, teacher, **weights):
        assert float(slope.abs().sum()) < 1e-9
