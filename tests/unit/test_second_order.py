"""Second-order pruning against least squares in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from pruneonce import pruning, second_order
from tests.conftest import token_batch


def correlated(features: int, rows: int = 600) -> torch.Tensor:
    """Inputs that share a few directions, as activations do."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(features // 4, features, generator=generator)
    x = torch.randn(rows, features // 4, generator=generator) @ mixing
    return x + 0.1 * torch.randn(rows, features, generator=generator)


def pruned(linear: nn.Linear, x: torch.Tensor, sparsity: float) -> pruning.MaskedLinear:
    masked = pruning.MaskedLinear(nn.Linear(linear.in_features, linear.out_features))
    masked.load_state_dict(linear.state_dict())
    second_order.prune_second_order(masked, x.T @ x / len(x), sparsity)
    return masked


@pytest.mark.parametrize("features", [32, 200])
@pytest.mark.parametrize(("sparsity", "share"), [(0.3, 0.3), (0.5, 0.5), (0.85, 0.9)])
def test_the_output_moves_less_than_under_magnitude_pruning(features, sparsity, share):
    torch.manual_seed(0)
    linear, x = nn.Linear(features, 16), correlated(features)
    ours = pruned(linear, x, sparsity)
    magnitude = linear.weight * pruning.magnitude_mask(linear.weight, sparsity)
    wanted = linear(x)
    error = (ours(x) - wanted).square().mean()
    assert error < share * (nn.functional.linear(x, magnitude, linear.bias) - wanted).square().mean()


@pytest.mark.parametrize("features", [5, 128, 129, 300])
@pytest.mark.parametrize("sparsity", [0.0, 0.123, 0.85, 0.999, 1.0])
def test_exactly_the_asked_count_is_pruned_and_written_as_zero(features, sparsity):
    torch.manual_seed(0)
    linear = pruned(nn.Linear(features, 7), correlated(max(features, 8))[:, :features], sparsity)
    count = pruning.pruned_count(sparsity, linear.weight.numel())
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


def test_an_input_that_never_fires_is_no_error():
    moments = torch.zeros(6, 6)
    linear = pruning.MaskedLinear(nn.Linear(6, 4))
    second_order.prune_second_order(linear, moments, 0.5)
    assert int((~linear.mask).sum()) == 12
    assert torch.isfinite(linear.weight).all()


def test_input_moments_are_the_mean_outer_product():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    first, second = torch.randn(4, 3), torch.randn(2, 5, 3)
    found = second_order.input_moments({"a": model[0], "b": model[1]}, lambda: (model(first), model(second)))
    seen = torch.cat([first, second.flatten(0, 1)])
    inner = model[0](seen).detach()
    torch.testing.assert_close(found["a"], seen.T @ seen / 14)
    torch.testing.assert_close(found["b"], inner.T @ inner / 14)
    assert not model[0]._forward_pre_hooks


def test_a_language_model_is_pruned_on_what_it_reads(masked_lm, engine):
    linears = pruning.mask_linears(masked_lm, r"^encoder\.")
    read = []

    def sample(step):
        read.append(step)
        return token_batch(step)

    second_order.prune(masked_lm, linears, sample, 0.6, batches=3, engine=engine)
    assert read == [0, 1, 2]
    assert len(linears) == 12
    for linear in linears.values():
        assert int((~linear.mask).sum()) == pruning.pruned_count(0.6, linear.mask.numel())
