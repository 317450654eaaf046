"""Laws of fake quantization, for any tensor."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pruneonce.quantization import (
    FakeQuantLinear,
    Int8Linear,
    activation_grid,
    fake_quantize_activation,
    fake_quantize_weight,
    quantize_weight,
    weight_scale,
)

values = st.floats(-1e4, 1e4, width=32)


@st.composite
def grids(draw):
    low, high = sorted((draw(values), draw(values)))
    return low, high, *activation_grid(torch.tensor(low), torch.tensor(high))


@st.composite
def matrices(draw):
    """Rows of very different size, some of zeros only."""
    columns = draw(st.integers(1, 8))
    row = st.tuples(
        st.sampled_from([0.0, 1e-12, 1e-4, 1.0, 1e4]),
        st.lists(st.floats(-1, 1, width=32), min_size=columns, max_size=columns),
    )
    return torch.tensor([[size * v for v in r] for size, r in draw(st.lists(row, min_size=1, max_size=8))])


@given(grids(), st.lists(values, min_size=1, max_size=20))
def test_activations_are_rounded_once(grid, x):
    _, _, scale, zero_point = grid
    once = fake_quantize_activation(torch.tensor(x), scale, zero_point)
    assert torch.equal(fake_quantize_activation(once, scale, zero_point), once)


@given(grids(), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_the_error_inside_the_range_is_half_a_step_at_most(grid, shares):
    low, high, scale, zero_point = grid
    x = torch.tensor([low + share * (high - low) for share in shares]).clamp(low, high)
    error = (fake_quantize_activation(x, scale, zero_point) - x).abs()
    assert (error <= scale * 0.5 + 1e-6 * max(abs(low), abs(high))).all()


@given(grids())
def test_zero_stays_zero(grid):
    _, _, scale, zero_point = grid
    assert fake_quantize_activation(torch.zeros(1), scale, zero_point).item() == 0
    assert scale > 0


bits = st.sampled_from([8, 7])


@given(matrices(), bits)
def test_weights_are_rounded_once_finite_and_within_half_a_step(weight, bits):
    scale = weight_scale(weight, bits)
    assert (scale > 0).all()  # ONNX divides by it, also for a row that is pruned whole
    once = fake_quantize_weight(weight, scale)
    assert torch.isfinite(once).all()
    assert torch.equal(fake_quantize_weight(once, scale), once)
    assert ((once - weight).abs() <= scale[:, None] * 0.5 * (1 + 1e-5)).all()


@given(matrices(), bits)
def test_zeros_of_a_weight_survive_int8(weight, bits):
    weight[:, 0] = 0
    assert (quantize_weight(weight, bits)[weight == 0] == 0).all()
    assert (fake_quantize_weight(weight, weight_scale(weight, bits))[weight == 0] == 0).all()


@given(matrices(), bits)
def test_the_integers_are_symmetric_and_fill_the_range(weight, bits):
    integers, scale = quantize_weight(weight, bits), weight_scale(weight, bits)
    assert torch.equal(quantize_weight(-weight, bits), -integers)
    full = weight.abs().amax(1) > 1e-5
    assert (integers[full].int().abs().amax(1) == {8: 127, 7: 63}[bits]).all()
    assert torch.equal(integers.float() * scale[:, None], fake_quantize_weight(weight, scale))


@given(matrices())
def test_seven_bits_never_overflow_where_two_products_are_summed_in_16_bits(weight):
    """Processors without VNNI: uint8 * int8 + uint8 * int8 saturates at int16."""
    largest = int(quantize_weight(weight, 7).int().abs().max())
    assert 255 * largest * 2 <= 2**15 - 1 < 255 * 127 * 2


@given(matrices(), st.integers(0, 2**31), bits)
def test_what_ships_computes_what_was_trained(weight, seed, bits):
    generator = torch.Generator().manual_seed(seed)
    linear = FakeQuantLinear(nn.Linear(weight.shape[1], weight.shape[0]), weight_bits=bits)
    linear.weight.data.copy_(weight)
    linear.mask.copy_(torch.rand(weight.shape, generator=generator) < 0.5)
    linear(torch.randn(20, weight.shape[1], generator=generator))
    linear.observe = False
    x = torch.randn(3, weight.shape[1], generator=generator)
    wanted = linear(x)
    torch.testing.assert_close(Int8Linear(linear)(x), wanted, rtol=1e-5, atol=1e-5 * max(1.0, float(weight.abs().max())))
    assert torch.isfinite(wanted).all()
