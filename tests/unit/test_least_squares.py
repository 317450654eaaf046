"""Pruning by least squares: against a naive selection in float64, planted weights, two models, order of the layers."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from pruneonce.sparsity import least_squares, masks, patterns, second_order
from pruneonce.sparsity.criterion import Calibration
from pruneonce.sparsity.least_squares import Moments, choose
from tests.conftest import token_batch
from tests.unit.test_second_order import check_dropout_is_off, correlated


def naive(y: np.ndarray, x: np.ndarray, count: int) -> np.ndarray:
    """Forward selection as a textbook has it: fit all chosen inputs again, with each of the others in turn."""
    chosen: list[int] = []
    for _ in range(count):
        errors = {}
        for j in set(range(x.shape[1])) - set(chosen):
            part = x[:, [*chosen, j]]
            errors[j] = np.square(y - part @ np.linalg.lstsq(part, y, rcond=None)[0]).sum()
        chosen.append(min(errors, key=lambda j: errors[j]))
    row = np.zeros(x.shape[1])
    row[chosen] = np.linalg.lstsq(x[:, chosen], y, rcond=None)[0]
    return row


def seen(x: torch.Tensor, d: torch.Tensor | None = None) -> Moments:
    moments = Moments()
    for part in (slice(None, 100), slice(100, None)):  # in two batches
        moments.add(x[part], (x if d is None else d)[part])
    return moments


def pruned(linear: nn.Linear, moments: Moments, sparsity: float) -> masks.MaskedLinear:
    masked = masks.MaskedLinear(copy.deepcopy(linear))
    least_squares.fit(masked, linear.weight.detach(), moments, sparsity)
    return masked


@torch.no_grad()
def error(linear, x, wanted):
    return float((linear(x) - wanted).square().mean())


def planted(features: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs x, and E[y x^T], E[x x^T] of outputs y that they explain in part."""
    x, draw = correlated(features).double(), torch.Generator().manual_seed(4)
    noise = torch.randn(600, rows, generator=draw).double()
    y = x @ torch.randn(features, rows, generator=draw).double() + noise
    return x, y.T @ x / 600, x.T @ x / 600


@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_row_chooses_as_a_naive_forward_selection_does(count):
    x, wanted, moments = planted(20, 5)
    y = np.linalg.lstsq(moments.numpy(), wanted.numpy().T, rcond=None)[0]
    for i in range(5):
        got = choose(wanted[i : i + 1], moments, count)[0]
        np.testing.assert_allclose(got.numpy(), naive(x.numpy() @ y[:, i], x.numpy(), count), atol=1e-8)


def test_rows_compete_and_each_keeps_its_first_choices():
    """Of two rows the one of larger outputs keeps more, up to MOST times the mean; each is fitted on what it keeps."""
    _, wanted, moments = planted(20, 2)
    wanted[1] *= 0.01
    got = choose(wanted, moments, 8)
    assert (got != 0).sum(1).tolist() == [6, 2]
    assert least_squares.MOST == 1.5
    for row, count in enumerate([6, 2]):
        assert torch.allclose(got[row], choose(wanted[row : row + 1], moments, count)[0], atol=1e-10)


def test_no_other_shares_of_the_rows_have_less_error():
    """Every way to deal 9 weights to 3 rows, at most 5 a row, by trying; inputs that do not correlate, so greed is right."""
    draw = torch.Generator().manual_seed(7)
    moments = torch.diag(torch.rand(12, generator=draw).double() + 0.1)
    wanted = torch.randn(3, 12, generator=draw).double() * torch.tensor([[1.0], [2.0], [0.5]])
    inverse = torch.linalg.inv(moments)

    def lost(weights):
        change = weights - wanted @ inverse
        return float((change @ moments @ change.T).trace())

    alone = {(i, k): choose(wanted[i : i + 1], moments, k) for i in range(3) for k in range(6)}
    ways = [ks for ks in itertools.product(range(6), repeat=3) if sum(ks) == 9]
    assert len(ways) == 25
    best = min(lost(torch.cat([alone[i, k] for i, k in enumerate(ks)])) for ks in ways)
    assert lost(choose(wanted, moments, 9)) == pytest.approx(best)


def test_rows_that_are_chosen_in_parts_are_the_same(monkeypatch):
    torch.manual_seed(0)
    linear, x = nn.Linear(32, 9), correlated(32)
    whole = pruned(linear, seen(x), 0.7)
    monkeypatch.setattr(least_squares, "NUMBERS", 2 * 32 * 10)
    parts = pruned(linear, seen(x), 0.7)
    assert torch.equal(whole.mask, parts.mask)
    assert torch.allclose(whole.weight, parts.weight, atol=1e-6)


@pytest.mark.parametrize("features", [5, 128, 129])
@pytest.mark.parametrize("sparsity", [0.0, 0.123, 0.85, 0.999, 1.0])
def test_exactly_the_asked_count_is_pruned(features, sparsity):
    torch.manual_seed(0)
    linear = pruned(nn.Linear(features, 7), seen(correlated(max(features, 8))[:, :features]), sparsity)
    assert int((~linear.mask).sum()) == masks.pruned_count(sparsity, linear.weight.numel())
    assert torch.equal(linear.weight == 0, ~linear.mask)
    assert torch.isfinite(linear.weight).all()


def test_weights_that_are_sparse_already_stay_as_they_are():
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 6), torch.randn(600, 24)  # greedy choices are right where inputs do not correlate
    with torch.no_grad():
        keep = torch.rand(6, 24).argsort(1) < 6
        linear.weight.mul_(keep)
    again = pruned(linear, seen(x), 0.75)
    assert torch.equal(again.mask, keep)
    assert torch.allclose(again.weight, linear.weight, atol=1e-2)


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.85])
def test_the_output_moves_less_than_under_second_order(sparsity):
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 32), correlated(64)
    wanted = linear(x)
    other = masks.MaskedLinear(copy.deepcopy(linear))
    second_order.prune_second_order(other, x.T @ x / len(x), sparsity)
    assert error(pruned(linear, seen(x), sparsity), x, wanted) < 0.9 * error(other, x, wanted)


def test_a_layer_makes_up_for_what_its_inputs_have_lost():
    """x is d after a pruned layer: smaller, with other means. The wanted outputs are those at d."""
    torch.manual_seed(0)
    linear, d = nn.Linear(48, 16), correlated(48) + 1.0
    x = 0.6 * d + 0.2 * torch.randn(600, 48) - 0.5
    wanted = linear(d)
    aware, unaware = pruned(linear, seen(x, d), 0.5), pruned(linear, seen(d), 0.5)
    assert error(aware, x, wanted) < 0.3 * error(unaware, x, wanted)
    assert torch.allclose(aware(x).mean(0), wanted.mean(0), atol=1e-3)


def test_without_a_bias_there_is_none_to_fit():
    torch.manual_seed(0)
    linear, x = nn.Linear(16, 8, bias=False), correlated(16) + 2.0
    got = pruned(linear, seen(x), 0.5)
    assert got.bias is None
    magnitude = linear.weight * masks.magnitude_mask(linear.weight, 0.5)
    assert error(got, x, linear(x)) < 0.5 * error(lambda x: nn.functional.linear(x, magnitude), x, linear(x))


def test_inputs_that_are_always_0_or_equal_break_nothing():
    torch.manual_seed(0)
    x = correlated(16)
    x[:, 3], x[:, 5] = 0.0, x[:, 6]
    got = pruned(nn.Linear(16, 8), seen(x), 0.5)
    assert torch.isfinite(got.weight).all()
    assert int((~got.mask).sum()) == 64


def test_layers_are_pruned_in_the_order_in_which_they_run(masked_lm):
    linears = masks.mask_linears(masked_lm, None)
    found = least_squares.groups(masked_lm, linears, lambda m, batch: masks.body(m)(**batch), token_batch())
    layer = ["attention.self.query", "attention.self.key", "attention.self.value"]
    rest = ["attention.output.dense", "intermediate.dense", "output.dense"]
    wanted = [[f"encoder.layer.{i}.{name}" for name in names] for i in (0, 1) for names in (layer, *([r] for r in rest))]
    assert [sorted(names) for names in found] == [sorted(names) for names in wanted]


def chain(*, features: int = 24) -> tuple[nn.Sequential, dict[str, torch.Tensor]]:
    """Three linears in a row, masked, and a batch of what the first one reads."""
    torch.manual_seed(1)
    model = nn.Sequential(*(nn.Linear(features, features) for _ in range(3)))
    masks.mask_linears(model, "")
    x = correlated(features)
    return model, {"x": x, "attention_mask": torch.ones(len(x), dtype=torch.int64)}


def prune_chain(model: nn.Sequential, batch: dict[str, torch.Tensor], sparsity: float) -> None:
    least_squares.prune(model, sparsity, read=lambda m, b: m(b["x"]), batches=lambda: iter([batch]))


def test_a_model_loses_less_than_where_each_layer_is_fitted_to_the_dense_inputs():
    """Later layers make up for the errors of the earlier ones: that needs the inputs of both models."""
    model, batch = chain()
    dense, alone = copy.deepcopy(model), copy.deepcopy(model)
    x = batch["x"]
    with torch.no_grad():
        wanted = dense(x)
        for linear, of_dense in zip(alone, dense, strict=True):
            least_squares.fit(linear, of_dense.weight, seen(x), 0.7)
            x = of_dense(x)
    prune_chain(model, batch, 0.7)
    assert masks.masked_sparsity(model) == pytest.approx(0.7, abs=2e-3)
    assert error(model, batch["x"], wanted) < 0.9 * error(alone, batch["x"], wanted)


def test_sparsity_0_leaves_a_model_as_it_computes():
    model, batch = chain()
    with torch.no_grad():
        wanted = model(batch["x"])
    prune_chain(model, batch, 0.0)
    torch.testing.assert_close(model(batch["x"]), wanted, rtol=1e-3, atol=1e-3)


def test_what_was_pruned_before_counts_as_zero():
    results = []
    for behind in (0.0, 9.0):
        model, batch = chain()
        prune_chain(model, batch, 0.3)
        with torch.no_grad():
            for linear in model:
                linear.weight[~linear.mask] = behind
        prune_chain(model, batch, 0.6)
        results.append([linear.effective_weight.detach() for linear in model])
    assert all(map(torch.equal, *results))


def test_inputs_are_measured_without_dropout_and_the_model_goes_on_with_it(masked_lm, engine):
    calibration = Calibration(sample=token_batch, batches=2, engine=engine)

    def prune(model: nn.Module, linears) -> None:
        placed = patterns.placement("unstructured", "uniform", linears)
        least_squares.LeastSquares(placed, calibration).prune(model, 0.6)

    assert check_dropout_is_off(masked_lm, r"^encoder\.layer\.0\.", prune) == 6
