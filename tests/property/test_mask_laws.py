"""Laws of masks, lock and bake, for any weights."""

import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pruneonce import quantization
from pruneonce.models import checkpoint
from pruneonce.sparsity import second_order
from pruneonce.sparsity.masks import (
    MaskedLinear,
    bake,
    check_pattern,
    lock,
    magnitude_mask,
    mask_linears,
    prune,
    pruned_count,
    smallest,
    zeros,
)
from tests.conftest import random_masked_lm, token_batch

sparsities = st.one_of(st.sampled_from([0.0, 0.5, 0.85, 1.0]), st.floats(0, 1))


@st.composite
def matrices(draw, value=None):
    """Few distinct values make many ties."""
    rows, columns = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    ties = st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])
    value = draw(st.sampled_from([ties, st.floats(-1e3, 1e3, width=32)])) if value is None else value
    flat = draw(st.lists(value, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(flat, dtype=torch.float32).view(rows, columns)


@given(matrices(), sparsities)
def test_a_mask_prunes_exactly_k_and_the_smallest(weight, sparsity):
    mask = magnitude_mask(weight, sparsity)
    k = pruned_count(sparsity, weight.numel())
    assert mask.shape == weight.shape
    assert mask.dtype == torch.bool
    assert int((~mask).sum()) == k == round(sparsity * weight.numel())
    if 0 < k < weight.numel():
        assert weight[mask].abs().min() >= weight[~mask].abs().max()


@given(matrices())
def test_sparsity_0_keeps_all_and_1_keeps_none(weight):
    assert magnitude_mask(weight, 0.0).all()
    assert not magnitude_mask(weight, 1.0).any()


@given(matrices(), sparsities, sparsities)
def test_a_higher_sparsity_prunes_more_of_the_same(weight, one, two):
    low, high = sorted((one, two))
    assert not (magnitude_mask(weight, high) & ~magnitude_mask(weight, low)).any()


@given(matrices(), st.floats(0, 1), st.integers(0, 2**31))
def test_fault_2_the_fast_selection_decides_and_is_that_of_a_stable_sort(score, share, seed):
    count = round(share * score.numel())
    found = smallest(score.flatten(), count)
    assert torch.equal(found.nonzero()[:, 0], score.flatten().argsort(stable=True)[:count].sort().values)


@given(st.integers(0, 2**31), sparsities, st.integers(1, 6), st.sampled_from(["masked", "quantized"]))
def test_locked_zeros_outlive_any_optimizer_steps(seed, sparsity, steps, kind):
    """Under AdamW with weight decay and moments from before the lock; the first bake's zeros are in the second's."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(7, 9), nn.GELU(), nn.Linear(9, 3))
    mask_linears(model, "")
    prune(model, sparsity)
    bake(model)
    before = zeros(model, "")
    mask_linears(model, "", quantization.FakeQuantLinear if kind == "quantized" else MaskedLinear)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    lock(model)
    optimizer.step()
    for _ in range(steps):
        x = torch.randn(4, 7, generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.randint(3, (4,), generator=generator)).backward()
        optimizer.step()
    bake(model)
    check_pattern(before, zeros(model, ""))
    assert all((zeros(model, "")[name] >= zero).all() for name, zero in before.items())


@given(st.integers(0, 2**31), sparsities)
@settings(max_examples=8)
def test_bake_save_load_gives_the_same_logits(seed, sparsity):
    model, batch = random_masked_lm(seed), token_batch(seed)
    tokenizer = checkpoint.load_tokenizer(Path(__file__).parents[1] / "tiny" / "model")
    linears = mask_linears(model, r"^encoder\.")
    prune(model, sparsity)
    zero = {name: ~m.mask | (m.weight == 0) for name, m in linears.items()}  # a random weight may be 0 by itself: seed 4751
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        wanted = model(batch["input_ids"], batch["attention_mask"]).logits
        bake(model)
        assert torch.equal(model(batch["input_ids"], batch["attention_mask"]).logits, wanted)
        checkpoint.save(model, tokenizer, Path(folder))
        loaded = checkpoint.load_masked_lm(Path(folder), attention="eager").eval()
        assert torch.equal(loaded(batch["input_ids"], batch["attention_mask"]).logits, wanted)
    found = zeros(loaded, r"^encoder\.")
    assert all(torch.equal(found[name], expected) for name, expected in zero.items())


@given(matrices(st.floats(-10, 10, width=32)), sparsities, st.integers(0, 2**31))
def test_second_order_prunes_exactly_k_and_keeps_numbers_finite(weight, sparsity, seed):
    rows, columns = weight.shape
    linear = MaskedLinear(nn.Linear(columns, rows))
    linear.weight.data.copy_(weight)
    x = torch.randn(30, columns, generator=torch.Generator().manual_seed(seed))
    second_order.prune_second_order(linear, x.T @ x / 30, sparsity)
    assert int((~linear.mask).sum()) == pruned_count(sparsity, weight.numel())
    assert (linear.weight[~linear.mask] == 0).all()
    assert torch.isfinite(linear.weight).all()
    if sparsity == 0:
        assert torch.equal(linear.weight, weight)
