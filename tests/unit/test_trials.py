"""The choice of a rate, the loss of a variant, the sparsity while a task is learned: against numbers worked by hand."""

import numpy as np
import pytest

from pipeline.params.sections import Distillation
from pipeline.params.study import Variant
from pruneonce.sparsity import masks
from pruneonce.sparsity.criterion import Calibration
from pruneonce.sparsity.gradual import GradualPruning
from study import trials
from tests.conftest import PRUNABLE, cpu_engine


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


RATES = [1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3]


@pytest.mark.parametrize(
    ("peak", "first", "tried"),
    [
        (4e-4, 4e-4, [2e-4, 4e-4, 8e-4]),  # the first one is the best: its neighbours show it
        (4e-4, 8e-4, [2e-4, 4e-4, 8e-4, 1.6e-3]),
        (1e-4, 8e-4, RATES),  # down to the lowest, which has no lower one
        (1.6e-3, 8e-4, [4e-4, 8e-4, 1.6e-3]),
        (1.6e-3, 1.6e-3, [8e-4, 1.6e-3]),
    ],
)
def test_rates_are_tried_until_the_best_has_worse_neighbours(peak, first, tried):
    asked = []

    def score(rate):
        asked.append(rate)
        return 1.0 / (1.0 + abs(RATES.index(rate) - RATES.index(peak)))

    found = trials.climb(RATES, first, score)
    assert sorted(found) == sorted(asked) == tried
    assert trials.best_rate(found) == peak


@pytest.mark.parametrize(
    ("pruning", "end"),
    [("none", 0), ("one_shot", 0), ("once", 0), ("gradual", 5)],
)
def test_only_gradual_pruning_takes_steps(pruning, end):
    assert trials.prune_end_steps(pruning, 0.5, steps=10) == end
    assert trials.prune_end_steps(pruning, 1.0, steps=10) == (9 if end else 0)  # the last step there is


def test_a_variant_without_a_soft_loss_learns_from_the_labels_alone():
    recipe = Distillation(temperature=2.0, hard_weight=0.2, soft_weight=0.8, hidden_weight=1.0, attention_weight=0.5)
    soft = Variant(pruning="once", hard_weight=0.0, soft_weight=1.0, int8=False)
    labels = Variant(pruning="once", hard_weight=1.0, soft_weight=0.0, int8=False)
    assert trials.weighted(recipe, soft) == recipe.model_copy(update={"hard_weight": 0.0, "soft_weight": 1.0})
    assert list(trials.weighted(recipe, labels).model_dump().values()) == [2.0, 1.0, 0.0, 0.0, 0.0]


def pruning(model, *, sparsity, end, every, pattern="unstructured"):
    schedule = trials.LatePruning(
        prunable=list(masks.prunable(model, PRUNABLE)),
        pattern=pattern,
        scope="uniform",
        sparsity=sparsity,
        criterion="magnitude",
        calibration_tokens=0,
        prune_end_steps=end,
        prune_every_steps=every,
    )
    return GradualPruning(model, schedule, Calibration(sample=lambda step: {}, batches=0, engine=cpu_engine()))


@pytest.mark.parametrize(("tokens", "read"), [(0, 1), (37, 1), (38, 2), (60, 2), (100, 4), (10_000, 4)])
def test_a_criterion_reads_about_so_many_tokens_and_no_row_twice(tokens, read):
    """Four batches of 100 tokens in all, 25 each on the average."""
    batches = type("Batches", (), {"lengths": np.array([10, 20, 30, 40]), "__len__": lambda self: 4})()
    assert trials.calibration_batches(batches, tokens) == read


def test_gradual_pruning_may_have_a_pattern(classifier):
    gradual = pruning(classifier, sparsity=0.75, end=4, every=2, pattern="1x4")
    assert [gradual.before_step(step)["sparsity"] for step in range(5)][-1] == pytest.approx(0.75, abs=2e-3)
    for mask in (linear.mask for linear in masks.masked_linears(classifier).values()):
        per_block = mask.view(len(mask), -1, 4).sum(-1)
        assert set(per_block.unique().tolist()) == {0, 4}


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
    gradual = pruning(classifier, sparsity=0.8, end=end, every=4)
    sparsities = [gradual.before_step(step)["sparsity"] for step in range(len(course))]
    assert sparsities == pytest.approx(course, abs=2e-3)
    for zero in gradual.finish().values():
        assert int(zero.sum()) == masks.pruned_count(0.8, zero.numel())
