"""Second-order pruning against least squares in float64."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from pruneonce.sparsity import masks, patterns, second_order
from pruneonce.sparsity.criterion import Calibration
from pruneonce.sparsity.patterns import PATTERNS
from tests.conftest import token_batch
from tests.unit.test_patterns import allowed


def correlated(features: int, rows: int = 600) -> torch.Tensor:
    """Inputs that share a few directions, as activations do."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(features // 4, features, generator=generator)
    x = torch.randn(rows, features // 4, generator=generator) @ mixing
    return x + 0.1 * torch.randn(rows, features, generator=generator)


def pruned(linear: nn.Linear, x: torch.Tensor, sparsity: float, pattern: str = "unstructured") -> masks.MaskedLinear:
    masked = masks.MaskedLinear(nn.Linear(linear.in_features, linear.out_features))
    masked.load_state_dict(linear.state_dict())
    second_order.prune_second_order(masked, x.T @ x / len(x), sparsity, pattern=PATTERNS[pattern])
    return masked


@pytest.mark.parametrize("features", [32, 200])
@pytest.mark.parametrize(("sparsity", "share"), [(0.3, 0.3), (0.5, 0.5), (0.85, 0.9)])
def test_the_output_moves_less_than_under_magnitude_pruning(features, sparsity, share):
    torch.manual_seed(0)
    linear, x = nn.Linear(features, 16), correlated(features)
    ours = pruned(linear, x, sparsity)
    magnitude = linear.weight * masks.magnitude_mask(linear.weight, sparsity)
    wanted = linear(x)
    error = (ours(x) - wanted).square().mean()
    assert error < share * (nn.functional.linear(x, magnitude, linear.bias) - wanted).square().mean()


@pytest.mark.parametrize("features", [5, 128, 129, 300])
@pytest.mark.parametrize("sparsity", [0.0, 0.123, 0.85, 0.999, 1.0])
def test_exactly_the_asked_count_is_pruned_and_written_as_zero(features, sparsity):
    torch.manual_seed(0)
    linear = pruned(nn.Linear(features, 7), correlated(max(features, 8))[:, :features], sparsity)
    count = masks.pruned_count(sparsity, linear.weight.numel())
    assert int((~linear.mask).sum()) == count
    assert int((linear.weight == 0).sum()) == count
    assert torch.isfinite(linear.weight).all()


def test_sparsity_0_changes_nothing():
    torch.manual_seed(0)
    linear = nn.Linear(150, 9)
    masked = pruned(linear, correlated(150), 0.0)
    assert torch.equal(masked.weight, linear.weight)
    assert masked.mask.all()


def test_one_weight_is_the_least_costly_and_the_ones_after_it_make_up_for_it_best():
    """Of one row, with the columns before the removed one fixed: the optimum in closed form, in float64."""
    torch.manual_seed(3)
    linear, x = nn.Linear(12, 1), correlated(12)
    masked = pruned(linear, x, 1 / 12)
    hessian = (x.T @ x / len(x)).double().numpy()
    hessian += np.eye(12) * 0.01 * np.diag(hessian).mean()
    weight = linear.weight.detach().double().numpy()[0]
    cost, best = [], []
    for j in range(12):
        change = np.zeros(12)
        change[j] = -weight[j]
        if j < 11:
            change[j + 1 :] = np.linalg.solve(hessian[j + 1 :, j + 1 :], hessian[j + 1 :, j] * weight[j])
        cost.append(change @ hessian @ change)
        best.append(weight + change)
    chosen = int(np.argmin(cost))
    assert masked.mask[0].tolist() == [j != chosen for j in range(12)]
    np.testing.assert_allclose(masked.weight.detach().numpy()[0], best[chosen], atol=1e-4)


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("features", [24, 200])
def test_zeros_lie_in_the_pattern_and_cost_less_than_those_of_magnitude(name, features):
    torch.manual_seed(0)
    linear, x = nn.Linear(features, 16), correlated(features)
    ours = pruned(linear, x, 0.5, name)
    select = patterns.uniform(PATTERNS[name])
    assert torch.equal(ours.mask, ours.weight != 0)
    masks.check_sparsity({"it": ~ours.mask}, 0.5, select)
    assert ours.mask.float().mean() == 0.5
    (mask,) = select([linear.weight.abs()], 0.5)
    wanted = linear(x)
    error = (ours(x) - wanted).square().mean()
    assert error < 0.6 * (nn.functional.linear(x, linear.weight * mask, linear.bias) - wanted).square().mean()


def test_a_block_goes_whole_and_the_columns_after_it_make_up_for_all_of_it():
    """Of one row of three 1x4 blocks the first is made the cheapest: the others' best is least squares, in float64."""
    torch.manual_seed(3)
    linear, x = nn.Linear(12, 1), correlated(12)
    linear.weight.data[:, :4] *= 0.01
    masked = pruned(linear, x, 1 / 3, "1x4")
    hessian = (x.T @ x / len(x)).double().numpy()
    hessian += np.eye(12) * 0.01 * np.diag(hessian).mean()
    weight = linear.weight.detach().double().numpy()[0]
    best = weight[4:] + np.linalg.solve(hessian[4:, 4:], hessian[4:, :4] @ weight[:4])
    assert masked.mask[0].tolist() == [False] * 4 + [True] * 8
    np.testing.assert_allclose(masked.weight.detach().numpy()[0, 4:], best, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "dropped"), [("unstructured", (2, 6), 6), ("1x4", (3, 8), 3), ("4x1", (8, 3), 3), ("2:4", (2, 8), 2)]
)
def test_where_inputs_do_not_correlate_no_mask_of_the_pattern_costs_less(name, shape, dropped):
    """Then nothing can make up for a removed weight, costs add up, and the cheapest is found: by trying every mask."""
    torch.manual_seed(5)
    linear, moments = nn.Linear(shape[1], shape[0]), torch.diag(torch.rand(shape[1]) * 4)
    masked = masks.MaskedLinear(nn.Linear(shape[1], shape[0]))
    masked.load_state_dict(linear.state_dict())
    second_order.prune_second_order(masked, moments, 0.5, pattern=PATTERNS[name])
    worth = linear.weight.detach().square() * (moments.diagonal() + 0.01 * moments.diagonal().mean())
    assert worth[~masked.mask].sum() <= min(worth[~mask].sum() for mask in allowed(name, shape, dropped)) + 1e-6
    torch.testing.assert_close(masked.weight, linear.weight * masked.mask)


def test_a_group_is_chosen_after_the_updates_of_the_groups_before_it():
    """Inputs 4-7 repeat 0-3: what the first group loses moves to its twin, whose smallest weights then are its largest."""
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)).repeat(1, 2)
    linear = nn.Linear(8, 1)
    linear.weight.data.copy_(torch.tensor([[3.0, 4.0, 5.0, 6.0, 0.2, 0.1, 0.4, 0.3]]))
    masked = pruned(linear, x, 0.5, "2:4")
    assert masked.mask[0].tolist() == [False, False, True, True, True, True, False, False]
    assert masked(x).sub(linear(x)).square().mean() < 0.05 * linear(x).square().mean()


def test_inputs_in_bf16_are_added_in_float32():
    x = torch.randn(3, 4, 8).bfloat16()
    found = second_order.rows_of_tokens(x, torch.ones(3, 4, dtype=torch.bool))
    assert found.dtype == torch.float32
    assert torch.equal(found, x.flatten(0, 1).float())


def test_what_was_pruned_before_counts_as_zero():
    """The optimizer goes on to move the weights behind a mask: its momentum does. They are not in use."""
    x = correlated(32)
    moments, results = x.T @ x / len(x), []
    for behind in (0.0, 9.0):
        torch.manual_seed(0)
        linear = masks.MaskedLinear(nn.Linear(32, 16))
        second_order.prune_second_order(linear, moments, 0.3)
        with torch.no_grad():
            linear.weight[~linear.mask] = behind
        second_order.prune_second_order(linear, moments, 0.6)
        results.append((linear.effective_weight.detach(), linear.mask))
    assert all(map(torch.equal, *results))


def test_an_input_that_never_fires_is_no_error():
    moments = torch.zeros(6, 6)
    linear = masks.MaskedLinear(nn.Linear(6, 4))
    second_order.prune_second_order(linear, moments, 0.5)
    assert int((~linear.mask).sum()) == 12
    assert torch.isfinite(linear.weight).all()


def test_input_moments_are_the_mean_outer_product_of_what_is_no_padding():
    """A row of 5 and one of 2 tokens; then, as a pooler sees them, one input for each of 4 rows."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    rows, pooled = torch.randn(2, 5, 3), torch.randn(4, 3)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    batches = [{"x": rows, "attention_mask": mask}, {"x": pooled, "attention_mask": torch.ones(4, 7)}]
    found = second_order.input_moments({"a": model[0], "b": model[1]}, lambda batch: model(batch["x"]), batches)
    seen = torch.cat([rows[0], rows[1, :2], pooled])
    inner = model[0](seen).detach()
    torch.testing.assert_close(found["a"], seen.T @ seen / 11)
    torch.testing.assert_close(found["b"], inner.T @ inner / 11)
    assert not model[0]._forward_pre_hooks


def test_a_language_model_is_pruned_on_what_it_reads(masked_lm, engine):
    linears = masks.mask_linears(masked_lm, r"^encoder\.")
    read = []

    def sample(step):
        read.append(step)
        return token_batch(step)

    second_order.prune(masked_lm, linears, Calibration(sample=sample, batches=3, engine=engine), 0.6)
    assert read == [0, 1, 2]
    assert len(linears) == 12
    for linear in linears.values():
        assert int((~linear.mask).sum()) == masks.pruned_count(0.6, linear.mask.numel())


def test_no_more_is_read_at_a_time_than_training_does(masked_lm, make_engine):
    found, rows = [], []
    for micro_batches in (1, 2):
        model = copy.deepcopy(masked_lm)
        model.get_input_embeddings().register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
        linears = masks.mask_linears(model, r"^encoder\.")
        calibration = Calibration(sample=token_batch, batches=2, engine=make_engine(micro_batches))
        second_order.prune(model, linears, calibration, 0.6)
        found.append({name: linear.effective_weight.detach() for name, linear in linears.items()})
    assert rows == [4] * 2 + [2] * 4
    assert len(found[0]) == 12
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, atol=1e-4, rtol=1e-3)


def check_dropout_is_off(masked_lm, layers: str, prune) -> int:
    """A model with dropout loses the same weights as one without, and goes on with it. Returns its linears.

    prune: called with the model and its masked linears.
    """
    patterns_of = []
    for rate in (0.0, 0.5):
        model = copy.deepcopy(masked_lm).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = rate
        prune(model, masks.mask_linears(model, layers))
        assert model.training
        patterns_of.append(masks.zeros(model, layers))
    assert all(torch.equal(zero, patterns_of[1][name]) for name, zero in patterns_of[0].items())
    return len(patterns_of[0])


def test_inputs_are_measured_without_dropout_and_the_model_goes_on_with_it(masked_lm, engine):
    calibration = Calibration(sample=token_batch, batches=2, engine=engine)
    prune = partial(second_order.prune, calibration=calibration, sparsity=0.6)
    assert check_dropout_is_off(masked_lm, r"^encoder\.", prune) == 12
