"""Fake quantization against plain numpy, q = clamp(round(x / scale) + zero_point), and against a product of integers."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from pruneonce import engine, quantization
from pruneonce.errors import ModelError
from pruneonce.quantization import (
    FakeQuantLinear,
    Int8Linear,
    activation_grid,
    fake_quantize_activation,
    fake_quantize_weight,
    quantize_weight,
    weight_scale,
)
from pruneonce.sparsity import masks
from tests.conftest import quantized_classifier, token_batch


def quantized(x, scale, zero_point, low, high):
    """The formula of the module, in numpy."""
    return np.clip(np.round(x / scale) + zero_point, low, high)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (-1e-3, 1e-3)])
def test_activations_are_the_formula(low, high):
    x = np.random.default_rng(0).uniform(low * 1.5 - 0.1, high * 1.5 + 0.1, 1000).astype(np.float32)
    scale, zero_point = activation_grid(torch.tensor(low), torch.tensor(high))
    expected = (quantized(x, scale.item(), zero_point.item(), 0, 255) - zero_point.item()) * scale.item()
    found = fake_quantize_activation(torch.tensor(x), scale, zero_point)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [(-1.0, 1.55, 0.01, 100), (0.0, 255.0, 1.0, 0), (-51.0, 0.0, 0.2, 255), (1.0, 5.1, 0.02, 0), (-2.55, -1.0, 0.01, 255)],
)
def test_the_grid_by_hand_always_holds_zero(low, high, scale, zero_point):
    found = activation_grid(torch.tensor(low), torch.tensor(high))
    assert found[0].item() == pytest.approx(scale)
    assert found[1].item() == zero_point
    assert found[1].dtype == torch.uint8


def test_a_constant_activation_has_a_grid():
    scale, zero_point = activation_grid(torch.tensor(0.0), torch.tensor(0.0))
    assert scale > 0
    assert torch.equal(fake_quantize_activation(torch.zeros(3), scale, zero_point), torch.zeros(3))


def test_weights_are_the_formula_row_by_row():
    weight = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32) * np.array([[1e-3], [1], [9], [0], [50], [2]])
    weight = weight.astype(np.float32)
    scale = np.maximum(np.abs(weight).max(1, keepdims=True) / 127, 1e-8).astype(np.float32)
    np.testing.assert_allclose(weight_scale(torch.tensor(weight)).numpy(), scale[:, 0])
    integers = quantized(weight, scale, 0, -127, 127)
    found = fake_quantize_weight(torch.tensor(weight), torch.tensor(scale[:, 0]))
    np.testing.assert_allclose(found.numpy(), integers * scale, rtol=1e-6)
    np.testing.assert_array_equal(quantize_weight(torch.tensor(weight)).numpy(), integers)


def test_the_integers_are_those_of_training_to_the_last_one():
    """w / scale and w * (1 / scale) round apart once in some hundred thousand weights."""
    torch.manual_seed(0)
    weight = torch.randn(500, 4000)
    scale = weight_scale(weight)
    assert torch.equal(quantize_weight(weight).float() * scale[:, None], fake_quantize_weight(weight, scale))


def test_fault_7_the_symmetric_maximum_is_127():
    weight = torch.tensor([[3.0, -3.0, 1.5], [-0.5, 0.25, 0.0]])
    assert quantize_weight(weight).tolist()[0][:2] == [127, -127]
    assert quantize_weight(weight).abs().max() == 127
    assert fake_quantize_weight(torch.tensor([[9.0, -9.0]]), torch.tensor([1 / 127])).tolist() == [[1.0, -1.0]]


def test_the_gradient_of_an_activation_passes_inside_the_range_only():
    scale, zero_point = torch.tensor(0.1), torch.tensor(100, dtype=torch.uint8)  # -10.0 to 15.5
    x = torch.tensor([-20.0, -10.06, -10.04, -9.0, 0.0, 15.4, 15.54, 15.56, 99.0], requires_grad=True)
    (fake_quantize_activation(x, scale, zero_point) * 3).sum().backward()
    assert x.grad.tolist() == [0, 0, 3, 3, 3, 3, 3, 0, 0]


def test_the_gradient_of_a_weight_passes_as_it_is():
    weight = torch.randn(3, 4, requires_grad=True)
    upstream = torch.randn(3, 4)
    (fake_quantize_weight(weight, weight_scale(weight)) * upstream).sum().backward()
    assert torch.equal(weight.grad, upstream)


def test_the_operators_are_registered_as_torch_wants_them():
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    scale, zero_point = activation_grid(torch.tensor(-1.0), torch.tensor(2.0))
    activation = (torch.randn(4, requires_grad=True), scale, zero_point)
    torch.library.opcheck(fake_quantize_activation, activation, test_utils=checks)
    weight = torch.randn(2, 3, requires_grad=True)
    torch.library.opcheck(fake_quantize_weight, (weight, weight_scale(weight)), test_utils=checks)


def test_the_range_is_a_moving_average_that_the_first_tensor_sets():
    linear = FakeQuantLinear(nn.Linear(2, 2), momentum=0.25)
    linear(torch.tensor([[-4.0, 8.0]]))
    assert (linear.low.item(), linear.high.item()) == (-4, 8)
    linear(torch.tensor([[0.0, 4.0]]))
    assert (linear.low.item(), linear.high.item()) == (-3, 7)
    linear.observe = False
    linear(torch.tensor([[-100.0, 100.0]]))
    assert (linear.low.item(), linear.high.item()) == (-3, 7)


def frozen(bias: bool = True) -> FakeQuantLinear:
    torch.manual_seed(0)
    linear = FakeQuantLinear(nn.Linear(24, 10, bias=bias))
    linear.mask.copy_(masks.magnitude_mask(linear.weight, 0.5))
    linear(torch.randn(50, 24))
    linear.observe = False
    return linear


def test_the_linear_multiplies_integers():
    """Independent of torch: an int64 product, scaled at the end."""
    linear, x = frozen(), torch.randn(7, 24)
    scale, zero_point = (v.item() for v in activation_grid(linear.low, linear.high))
    weight = (linear.weight * linear.mask).detach().double().numpy()
    weight_scales = np.abs(weight).max(1) / 127
    qx = quantized(x.double().numpy(), scale, zero_point, 0, 255).astype(np.int64) - zero_point
    qw = quantized(weight, weight_scales[:, None], 0, -127, 127).astype(np.int64)
    expected = (qx @ qw.T) * scale * weight_scales + linear.bias.detach().numpy()
    np.testing.assert_allclose(linear(x).detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_int8_linear_is_the_frozen_fake_quantized_one(bias):
    linear, x = frozen(bias), torch.randn(3, 7, 24)
    shipped = Int8Linear(linear)
    assert shipped.weight.dtype == torch.int8
    assert shipped.weight.shape == (24, 10)
    torch.testing.assert_close(shipped(x), linear(x), atol=1e-6, rtol=1e-6)
    assert (shipped.weight.T[~linear.mask] == 0).all()


def test_fault_7_training_and_evaluation_use_the_same_number_system():
    linear, x = frozen(), torch.randn(5, 24)
    assert torch.equal(linear.train()(x), linear.eval()(x))
    weight = linear.effective_weight
    steps = fake_quantize_weight(weight, weight_scale(weight)) / weight_scale(weight)[:, None]
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)


def ranges(model):
    return {name: (float(m.low), float(m.high)) for name, m in quantization.quantized_linears(model).items()}


def set_state(model, *, observe: bool, rounds: bool):
    for linear in quantization.quantized_linears(model).values():
        linear.observe, linear.rounds = observe, rounds


def test_before_it_begins_the_model_is_the_float_one_and_its_ranges_move():
    """Delayed start: not a bit of the logits differs from those of the masked model, then every linear rounds."""
    batch = {name: token_batch(5)[name] for name in ("input_ids", "attention_mask")}
    model = quantized_classifier()
    rounded = model(**batch).logits
    plain = quantized_classifier()
    masks.bake(plain)
    set_state(model, observe=True, rounds=False)
    before = ranges(model)
    assert torch.equal(model(**batch).logits, plain(**batch).logits)
    after = ranges(model)
    assert all(after[name] != before[name] for name in before)
    for name, linear in quantization.quantized_linears(model).items():
        linear.low.fill_(before[name][0])
        linear.high.fill_(before[name][1])
    quantization.freeze(model)
    assert torch.equal(model(**batch).logits, rounded)
    assert not torch.equal(rounded, plain(**batch).logits)


def test_rounding_begins_and_ranges_freeze_at_their_shares_of_the_steps():
    model = quantized_classifier()
    linears = list(quantization.quantized_linears(model).values())
    before_step = quantization.before_step(model, steps=10, begin_ratio=0.25, freeze_ranges_ratio=0.6)
    seen = []
    for step in range(10):
        assert before_step(step) == {}
        seen.append((linears[0].observe, linears[0].rounds))
        assert {(m.observe, m.rounds) for m in linears} == {seen[-1]}
    assert [observes for observes, _ in seen] == [True] * 6 + [False] * 4
    assert [rounds for _, rounds in seen] == [False] * 3 + [True] * 7
    set_state(model, observe=True, rounds=False)
    quantization.freeze(model)
    assert {(m.observe, m.rounds) for m in linears} == {(False, True)}


def test_a_saved_model_computes_the_same_once_its_quantizers_are_back(tmp_path):
    model, batch = quantized_classifier(), token_batch(9)
    wanted, found = model(batch["input_ids"], batch["attention_mask"]).logits, ranges(model)
    assert len(found) == 12
    assert all(low < high for low, high in found.values())
    quantization.save(quantization.quantized_linears(model), tmp_path)
    pattern = masks.bake(model)
    quantization.load(model, tmp_path)
    assert ranges(model) == found
    assert all(torch.equal(~linear.mask, pattern[name]) for name, linear in masks.masked_linears(model).items())
    assert torch.equal(model(batch["input_ids"], batch["attention_mask"]).logits, wanted)
    assert ranges(model) == found  # they are frozen
    saved = json.loads((tmp_path / "quantization.json").read_text())
    assert saved["weight_bits"] == 8
    assert list(saved["ranges"]) == list(pattern)


@pytest.mark.parametrize("bits", [7, 8])
def test_bits_and_ranges_round_trip_to_the_last_bit(tmp_path, bits):
    model = nn.Sequential(nn.Linear(4, 4))
    masks.mask_linears(model, "0", partial(quantization.FakeQuantLinear, weight_bits=bits))
    model[0].low.fill_(-0.1)
    model[0].high.fill_(1 / 3)
    before = ranges(model)
    quantization.save(quantization.quantized_linears(model), tmp_path)
    masks.bake(model)
    quantization.load(model, tmp_path)
    assert model[0].weight_bits == bits
    assert ranges(model) == before


def test_of_several_processes_the_first_one_writes(tmp_path, monkeypatch):
    linears = quantization.quantized_linears(quantized_classifier())
    monkeypatch.setattr(engine.distributed, "is_initialized", lambda: True)
    for rank, written in ((1, False), (0, True)):
        monkeypatch.setattr(engine.distributed, "get_rank", lambda rank=rank: rank)
        quantization.save(linears, tmp_path)
        assert (tmp_path / "quantization.json").exists() == written


def test_a_model_without_quantizers_is_not_saved(tmp_path):
    with pytest.raises(
        ModelError, match=r"expected fake-quantized linears .*, found no such linear\. Call .* before `bake`"
    ):
        quantization.save({}, tmp_path)
    mixed = {name: FakeQuantLinear(nn.Linear(2, 2), weight_bits=bits) for name, bits in {"a": 7, "b": 8}.items()}
    with pytest.raises(ModelError, match=r"found \[7, 8\]"):
        quantization.save(mixed, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_that_was_not_quantized_is_an_error(tmp_path):
    with pytest.raises(ModelError, match=r"expected quantization\.json in .*, found none: .* did not go through `quantize`"):
        quantization.load(nn.Linear(2, 2), tmp_path)


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"weight_bits": 8}',
        '{"weight_bits": 8, "ranges": []}',
        '{"weight_bits": 8, "ranges": {}}',
        '{"weight_bits": 8, "ranges": {"0": 1}}',
        '{"weight_bits": 9, "ranges": {"0": [0, 1]}}',
        '{"weight_bits": 8, "ranges": {"0": [1, 0]}}',
        '{"weight_bits": 8, "ranges": {"0": [NaN, 1]}}',
        '{"weight_bits": 8, "ranges": {"0": ["a", "b"]}}',
        '{"weight_bits": 8, "ranges": {"0": [1, 2, 3]}}',
    ],
)
def test_a_damaged_file_is_one_error_and_changes_no_layer(tmp_path, damaged):
    (tmp_path / "quantization.json").write_text(damaged)
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"expected ranges of quantized layers in .*quantization\.json, found"):
        quantization.load(model, tmp_path)
    assert type(model[0]) is nn.Linear


def test_a_layer_that_the_model_lacks_is_an_error(tmp_path):
    (tmp_path / "quantization.json").write_text('{"weight_bits": 8, "ranges": {"encoder.9": [0, 1]}}')
    with pytest.raises(ModelError, match=r"encoder\.9"):
        quantization.load(nn.Sequential(nn.Linear(2, 2)), tmp_path)


def test_to_int8_replaces_every_quantized_linear_and_keeps_the_function():
    model, batch = quantized_classifier(), token_batch(3)
    with torch.no_grad():
        wanted = model(batch["input_ids"], batch["attention_mask"]).logits
        made = quantization.to_int8(model)
        found = model(batch["input_ids"], batch["attention_mask"]).logits
    assert len(made) == 12
    assert not quantization.quantized_linears(model)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
