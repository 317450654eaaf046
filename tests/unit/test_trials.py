"""The choice of a learning rate, and the sparsity while a task is learned, against numbers worked by hand."""

import pytest

from pruneonce.sparsity import masks, patterns
from study import trials
from tests.conftest import PRUNABLE


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({1e-4: 0.5, 2e-4: 0.7, 4e-4: 0.6}, 2e-4),
        ({1e-4: 0.5, 2e-4: 0.7, 4e-4: 0.7}, 2e-4),  # a tie goes to the lower rate ...
        ({4e-4: 0.7, 2e-4: 0.7, 1e-4: 0.5}, 2e-4),  # ... wherever it stands in the grid
        ({3e-4: 0.0}, 3e-4),
    ],
)
def test_the_best_rate_is_that_of_the_highest_score_and_ties_go_to_the_lower(scores, best):
    assert trials.best_rate(scores) == best


def test_what_is_pruned_while_learning_may_have_a_pattern(classifier):
    linears = masks.mask_linears(classifier, PRUNABLE)
    blocks = patterns.uniform(patterns.fitting("1x4", linears))
    before_step = trials.pruned_while_learning(classifier, blocks, target=0.75, end=4, every=2)
    assert [before_step(step)["sparsity"] for step in range(5)][-1] == pytest.approx(0.75, abs=2e-3)
    for linear in linears.values():
        of_block = linear.mask.view(len(linear.mask), -1, 4).sum(-1)
        assert set(of_block.unique().tolist()) == {0, 4}


@pytest.mark.parametrize(
    ("end", "course"),
    [
        # 0.8 (1 - (1 - t/8)^3) at t = 0, 4, 8; between them the masks stay
        (8, [0, 0, 0, 0, 0.7, 0.7, 0.7, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8]),
        (6, [0, 0, 0, 0, 0.77037, 0.77037, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]),  # the last one is no multiple of 4
        (0, [0.8] * 13),
    ],
)
def test_sparsity_rises_by_the_cubic_until_its_end(classifier, end, course):
    masks.mask_linears(classifier, PRUNABLE)
    before_step = trials.pruned_while_learning(classifier, target=0.8, end=end, every=4)
    found = [before_step(step)["sparsity"] for step in range(len(course))]
    assert found == pytest.approx(course, abs=2e-3)
    masks.bake(classifier)
    for zero in masks.zeros(classifier, PRUNABLE).values():
        assert int(zero.sum()) == masks.pruned_count(0.8, zero.numel())
