"""Laws of patterns and scopes, for any scores."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pruneonce.sparsity import patterns, second_order
from pruneonce.sparsity.masks import MaskedLinear, check_sparsity, magnitude_mask
from pruneonce.sparsity.patterns import PATTERNS, Pattern
from tests.unit.test_second_order import correlated

sparsities = st.one_of(st.sampled_from([0.0, 0.5, 0.85, 1.0]), st.floats(0, 1))
names = st.sampled_from(sorted(PATTERNS))


@st.composite
def scores(draw):
    """float[out, in] that every pattern divides. Few distinct values make many ties; any sign."""
    out, width, distinct = draw(st.sampled_from([4, 8, 12])), draw(st.sampled_from([8, 16])), draw(st.integers(1, 400))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randint(-distinct, distinct + 1, (out, width), generator=generator).float() / 4


def units(mask: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """How much of each unit is kept: 0 or 1 if it goes or stays whole."""
    return pattern.pool(mask) / (pattern.rows * pattern.columns)


def count_of(total: int, sparsity: float) -> int:
    return round(sparsity * total)


@given(names, scores(), sparsities)
def test_units_go_whole_exactly_the_asked_count_and_the_lowest(name, score, sparsity):
    pattern = PATTERNS[name]
    mask = pattern.mask(score, sparsity)
    kept, worth = units(mask, pattern), pattern.pool(score)
    assert mask.shape == score.shape
    assert mask.dtype == torch.bool
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    rivals = pattern.group or kept.numel()
    for k, w in zip(kept.bool().view(-1, rivals), worth.view(-1, rivals), strict=True):
        assert int((~k).sum()) == count_of(rivals, sparsity)
        assert not k.any() or k.all() or w[k].min() >= w[~k].max()


@given(scores())
def test_half_is_n_of_every_m(score):
    for name, n, m in (("2:4", 2, 4), ("4:8", 4, 8)):
        assert (PATTERNS[name].mask(score, 0.5).view(-1, m).sum(1) == n).all()


@given(names, scores())
def test_sparsity_0_keeps_all_and_1_keeps_none(name, score):
    for scope in patterns.SCOPES.values():
        select = scope(PATTERNS[name])
        assert all(mask.all() for mask in select([score, score[:4]], 0.0))
        assert not any(mask.any() for mask in select([score, score[:4]], 1.0))


@given(names, st.lists(scores(), min_size=1, max_size=3), sparsities, sparsities, st.sampled_from(["uniform", "global"]))
def test_a_higher_sparsity_prunes_more_of_the_same(name, all_scores, one, two, scope):
    low, high = sorted((one, two))
    select = patterns.SCOPES[scope](PATTERNS[name])
    for less, more in zip(select(all_scores, low), select(all_scores, high), strict=True):
        assert not (more & ~less).any()


@given(scores(), sparsities)
def test_unstructured_and_uniform_is_the_paper_s(score, sparsity):
    assert torch.equal(patterns.UNSTRUCTURED.mask(score.abs(), sparsity), magnitude_mask(score, sparsity))


@given(st.sampled_from(["unstructured", "1x4", "4x1"]), st.lists(scores(), min_size=1, max_size=4), sparsities)
def test_global_keeps_the_highest_of_all_matrices_and_exactly_as_many(name, all_scores, sparsity):
    pattern = PATTERNS[name]
    masks = list(patterns.over_model(pattern)(all_scores, sparsity))
    kept = torch.cat([units(mask, pattern).flatten() for mask in masks])
    worth = torch.cat([pattern.pool(score).flatten() for score in all_scores])
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    assert int((kept == 0).sum()) == count_of(kept.numel(), sparsity)
    if 0 < kept.sum() < kept.numel():
        assert worth[kept == 1].min() >= worth[kept == 0].max()
    zeros = {str(i): ~mask for i, mask in enumerate(masks)}
    check_sparsity(zeros, sparsity, patterns.over_model(pattern))


@given(names, scores(), sparsities, st.integers(0, 2**31))
def test_second_order_obeys_the_pattern_and_keeps_numbers_finite(name, score, sparsity, seed):
    pattern, columns = PATTERNS[name], score.shape[1]
    linear = MaskedLinear(nn.Linear(columns, len(score)))
    linear.weight.data.copy_(score)
    x = torch.randn(40, columns, generator=torch.Generator().manual_seed(seed))
    second_order.prune_second_order(linear, x.T @ x / 40, sparsity, pattern=pattern)
    kept = units(linear.mask, pattern)
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    check_sparsity({"it": ~linear.mask}, sparsity, patterns.uniform(pattern))
    rivals = pattern.group or kept.numel()
    assert ((kept.view(-1, rivals) == 0).sum(1) == count_of(rivals, sparsity)).all()
    assert (linear.weight[~linear.mask] == 0).all()
    assert torch.isfinite(linear.weight).all()


@given(names, st.integers(0, 2**31), st.sampled_from([0.25, 0.5]))
def test_second_order_costs_no_more_than_magnitude_on_the_inputs_it_saw(name, seed, sparsity):
    """No theorem, as its choice is greedy: it holds on inputs as correlated as activations are."""
    torch.manual_seed(seed)
    pattern, x = PATTERNS[name], correlated(32)
    linear = MaskedLinear(nn.Linear(32, 8, bias=False))
    wanted, weight = linear(x), linear.weight.detach().clone()
    second_order.prune_second_order(linear, x.T @ x / len(x), sparsity, pattern=pattern)
    error = (linear(x) - wanted).square().sum()
    assert error <= (x @ (weight * pattern.mask(weight.abs(), sparsity)).T - wanted).square().sum()
