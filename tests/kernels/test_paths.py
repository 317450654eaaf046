"""Every path that this processor runs against numpy: integers bit for bit, floats within a stated error."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import special

from pruneonce.deployment.sparse_form import narrow_form, sparse_form
from tests.kernels import layout, native
from tests.kernels.native import DAMAGED, GELU, GELU_TANH, GOOD, NO_ACTIVATION, RELU, Grid

LAWS = settings(derandomize=True, deadline=None, database=None, max_examples=100)
FLAGS = {
    "portable": "",
    "avx2": "avx avx2 fma",
    "avxvnni": "avx avx2 fma avx_vnni",
    "avx512vnni": "avx2 fma avx512f avx512dq avx512bw avx512vl avx512_vnni",
}


def test_the_paths_are_those_that_linux_says_the_processor_has(library):
    with open("/proc/cpuinfo") as file:
        has = next((set(line.split()) for line in file if line.startswith("flags")), set())
    assert set(library.paths) == {name for name, flags in FLAGS.items() if set(flags.split()) <= has}
    assert library.processor.split()[0] == [name for name in native.NAMES if name in library.paths][-1]
    assert (library.processor.split()[1:] == ["amx"]) <= ("amx_int8" in has)
    assert not any(map(library.named, ("", "avx", "portable ", "AVX2")))


# ---- products ----


@st.composite
def products(draw):
    """(weight int8[N, K], activations uint8[tokens, K])."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    tokens = draw(st.integers(1, 40) | st.integers(1, 600))
    outputs, inputs = draw(st.integers(1, 100)), draw(st.integers(1, 30) | st.integers(1, 1200))
    density = draw(st.sampled_from([0.3, 0.1, 1, 0.6, 0.003, 0]))
    extreme = draw(st.booleans())
    weight = (
        generator.choice([-128, -127, 127], (outputs, inputs))
        if extreme
        else generator.integers(-128, 128, (outputs, inputs))
    )
    weight = np.where(generator.random(weight.shape) < density, weight, 0).astype(np.int8)
    weight[generator.random(outputs) < draw(st.sampled_from([0, 0.3]))] = 0
    x = generator.choice([0, 255], (tokens, inputs)) if extreme else generator.integers(0, 256, (tokens, inputs))
    return weight, x.astype(np.uint8)


def check_products(library, weight: np.ndarray, x: np.ndarray) -> None:
    """Every path gives the exact products of int8[N, K] and uint8[tokens, K], of both forms of the weight."""
    exact = weight.astype(np.int64) @ x.T.astype(np.int64)
    for form in (sparse_form(weight), narrow_form(weight)):
        with library.completed(form, outputs=len(weight), inputs=weight.shape[1]) as (status, sparse):
            assert status == GOOD
            np.testing.assert_array_equal(native.sums_of(sparse), weight.sum(axis=1, dtype=np.int64))
            for name, path in library.paths.items():
                for tile in layout.tiles(len(x)):
                    words = native.words_of(np.ascontiguousarray(layout.padding(x)[tile].T))
                    found = native.multiply(path, sparse, words, tile.stop - tile.start)
                    expected = exact[:, tile]
                    np.testing.assert_array_equal(found[:, : expected.shape[1]], expected, err_msg=name)


@pytest.mark.parametrize(
    ("four", "narrow"),
    [
        ((127, 1, 0, 0), True),
        ((127, 2, 0, 0), False),
        ((0, 0, -1, 127), True),
        ((0, 0, -2, 127), False),
        ((-128, 0, 0, -128), True),
        ((-128, -1, 0, 0), False),
        ((64, 64, -64, -64), True),
        ((64, 64, -64, -65), False),
        ((127, 127, 127, 127), False),
        ((-128, -128, -128, -128), False),
    ],
)
def test_a_word_is_narrow_where_no_pair_overflows_16_bits(library, four, narrow):
    weight = np.array([four], np.int8)
    with library.completed(sparse_form(weight), outputs=1, inputs=4) as (status, sparse):
        assert (status, bool(sparse.narrow)) == (GOOD, narrow)
    check_products(library, weight, np.full((16, 4), 255, np.uint8))


@LAWS
@given(products())
@example((np.full((33, 5000), -128, np.int8), np.full((17, 5000), 255, np.uint8)))  # the largest sums, of 14 blocks
@example((np.zeros((1, 1), np.int8), np.zeros((1, 1), np.uint8)))
@example((np.full((1, 1), 1, np.int8), np.full((600, 1), 7, np.uint8)))
def test_products_are_exact_on_every_path(library, given):
    check_products(library, *given)


@pytest.mark.parametrize("density", [0.05, 0.3, 1])
@pytest.mark.parametrize("tokens", [1, 17, 33, 49, 65, 81, 97, 113, 129, 600])  # tiles of every width
def test_tiles_of_every_width(library, tokens, density):
    generator = np.random.default_rng(tokens)
    weight = generator.integers(-128, 128, (37, 1001)) * (generator.random((37, 1001)) < density)
    x = generator.integers(0, 256, (tokens, 1001), np.uint8)
    check_products(library, weight.astype(np.int8), x)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("index", 96),  # outside of the block
        ("counts", 255),  # more words than there are
        ("counts", 0),  # fewer
        ("rows", 65535),  # no such output
        ("rows", 1),  # an output twice
    ],
)
def test_a_damaged_form_is_refused(library, field, value):
    form = sparse_form(np.ones((40, 400), np.int8))
    array = getattr(form, field).copy()
    array.flat[0] = value
    damaged = type(form)(**{**form.__dict__, field: array})
    assert array.flat[0] != getattr(form, field).flat[0]
    with library.completed(damaged, outputs=40, inputs=400) as (status, _):
        assert status == DAMAGED


# ---- the grid ----


def assert_on_grid(q: np.ndarray, x: np.ndarray, grid: Grid) -> None:
    """q is QuantizeLinear's of x. Where x / scale is nearer to a half than float32 tells, it may round either way."""
    exact = np.clip(x.astype(np.float64) / np.float64(np.float32(grid.scale)), -1e6, 1e6)
    near = np.abs(exact) * 2.0**-22
    low, high = (np.clip(np.rint(exact + e) + grid.zero_point, 0, 255) for e in (-near, near))
    assert ((low <= q) & (q <= high)).all()
    assert (low == high).mean() > 0.9  # this says something about nearly every number


grids = st.builds(Grid, st.sampled_from([1.0, 0.25, 0.0123, 3.7, 1e-6, 1e6]), st.sampled_from([0, 1, 128, 255]))


@LAWS
@given(grids, st.integers(1, 9), st.sampled_from([16, 32, 48, 128]), st.integers(0, 2**32))
def test_quantize_rounds_as_onnx_does(library, grid, channels, width, seed):
    generator = np.random.default_rng(seed)
    x = (generator.uniform(-300, 300, (channels, width)) * grid.scale).astype(np.float32)
    x.flat[:8] = [0, -0.0, 3e38, -3e38, np.inf, -np.inf, 1e-45, -1e-45]
    x[:, 8:12] = np.rint(x[:, 8:12] / grid.scale) * np.float32(grid.scale)
    found = {name: native.channels_of(native.quantize(path, x, grid), channels) for name, path in library.paths.items()}
    for name, q in found.items():
        assert_on_grid(q, x, grid)
        np.testing.assert_array_equal(q, found["portable"], err_msg=name)


def test_halves_round_to_even(library):
    x = np.broadcast_to(np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 254.5, 127.5], np.float32)[:, None], (8, 16)).copy()
    for path in library.paths.values():
        assert native.channels_of(native.quantize(path, x, Grid(1, 128)), 8)[:, 3].tolist() == [
            128,
            130,
            130,
            128,
            126,
            126,
            255,
            255,
        ]


def test_a_number_that_is_none_becomes_the_least_of_the_grid(library):
    """The same on every path; ONNX says nothing about it."""
    x = np.full((4, 16), np.nan, np.float32)
    for path in library.paths.values():
        assert not native.channels_of(native.quantize(path, x, Grid(1, 128)), 4).any()


# ---- what follows a product ----


@LAWS
@given(grids, st.integers(1, 32), st.sampled_from([0, 32]), st.sampled_from([0, 7, 255]), st.integers(0, 2**32))
def test_bias_and_relu_are_rounded_at_each_step_on_every_path(library, grid, outputs, begin, zero_point, seed):
    generator = np.random.default_rng(seed)
    sums = generator.integers(-(2**20), 2**20, begin + outputs, np.int32)
    acc = generator.integers(-(2**29), 2**29, (outputs, 48), np.int32)
    scale = (generator.uniform(0.1, 9, begin + outputs) * grid.scale * 1e-6).astype(np.float32)
    bias = (generator.uniform(-9, 9, begin + outputs) * grid.scale).astype(np.float32)
    expected = (acc - zero_point * sums[begin:, None]).astype(np.float32) * scale[begin:, None] + bias[begin:, None]
    for activation, wanted in {NO_ACTIVATION: expected, RELU: np.maximum(expected, 0)}.items():
        for name, path in library.paths.items():
            given = {"scale": scale, "bias": bias, "sums": sums, "zero_point": zero_point}
            y, q = native.finish(path, acc, **given, activation=activation, grid=grid, begin=begin)
            np.testing.assert_array_equal(y[begin:], wanted, err_msg=name)
            assert np.isnan(y[:begin]).all()
            assert_on_grid(native.channels_of(q, begin + outputs)[begin:], wanted, grid)


def activated(path, x: np.ndarray, activation: int) -> np.ndarray:
    """The activation of floats: they come in as biases."""
    acc = np.zeros((len(x), 16), np.int32)
    zeros = np.zeros(len(x), np.int32)
    y, _ = native.finish(
        path, acc, scale=np.ones_like(x), bias=x, sums=zeros, zero_point=0, activation=activation, grid=Grid(1, 0)
    )
    assert (y == y[:, :1]).all() or np.isnan(y).any()
    return y[:, 0]


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("activation", "exact"), [(GELU, lambda x: x * special.ndtr(x)), (GELU_TANH, gelu_tanh)], ids=["GELU", "GELU_TANH"]
)
def test_gelu_is_within_4e_7_of_its_argument(library, activation, exact):
    x = np.concatenate([np.linspace(-12, 12, 9001), [0, -0.0, 1e-30, -1e-30, 100, -100, 1e4, -1e4]]).astype(np.float32)
    expected = exact(x.astype(np.float64))
    for name, path in library.paths.items():
        error = np.abs(activated(path, x, activation) - expected)
        assert (error <= 4e-7 * np.abs(x)).all(), (name, x[np.argmax(error - 4e-7 * np.abs(x))], error.max())


# ---- layer normalization ----


@LAWS
@given(
    st.integers(1, 70),
    st.sampled_from([16, 32, 48, 128]),
    st.booleans(),
    st.sampled_from([0, 5]),
    grids,
    st.integers(0, 2**32),
)
def test_normalize(library, channels, width, residual, mean, grid, seed):
    generator = np.random.default_rng(seed)
    a, b = (generator.normal(mean, 1, (channels, width)).astype(np.float32) for _ in range(2))
    gain, bias = (generator.normal(size=channels).astype(np.float32) for _ in range(2))
    v = a.astype(np.float64) + (b if residual else 0)
    exact = (v - v.mean(axis=0)) / np.sqrt(v.var(axis=0) + 1e-5) * gain[:, None] + bias[:, None]
    found = {
        name: native.normalize(path, a, b if residual else None, gain, bias, epsilon=1e-5, grid=grid)
        for name, path in library.paths.items()
    }
    spread = (1 + np.abs(v).max(axis=0)) / np.sqrt(v.var(axis=0) + 1e-5)  # what a rounded number becomes when it is divided
    for name, (y, q) in found.items():
        assert (np.abs(y - exact) <= 1e-6 * (1 + np.abs(gain[:, None]) * spread)).all(), name
        np.testing.assert_array_equal(y, found["portable"][0], err_msg=name)
        np.testing.assert_array_equal(q, found["portable"][1], err_msg=name)
        assert_on_grid(native.channels_of(q, channels), y, grid)


def test_equal_channels_normalize_to_the_bias(library):
    ones = np.ones((12, 16), np.float32)
    bias = np.arange(12, dtype=np.float32)
    for path in library.paths.values():
        y, _ = native.normalize(path, 7 * ones, None, ones[:, 0].copy(), bias, epsilon=1e-12, grid=Grid(1, 0))
        np.testing.assert_array_equal(y, ones * bias[:, None])


# ---- attention ----


def attention(q, k, v, *, scale: float, mask: np.ndarray | None = None) -> np.ndarray:
    """In float64: float[size, tokens]."""
    scores = q.astype(np.float64).T @ k.astype(np.float64) * np.float64(np.float32(scale))
    return (special.softmax(scores + (0 if mask is None else mask), axis=1) @ v.astype(np.float64).T).T


@LAWS
@given(
    st.sampled_from([4, 8, 12, 20, 32, 64]),
    st.integers(1, 20) | st.integers(1, 400),
    st.sampled_from([16, 32, 48, 64]),
    st.sampled_from([0.01, 0.3, 2.0]),
    st.sampled_from([None, 0.0, 0.5, 1.0]),
    st.integers(0, 2**32),
)
def test_attend(library, size, keys, tokens, scale, masked, seed):
    """Scores of some tens in float32 are off by some 1e-6, so their exponentials are: the tolerance grows with them."""
    generator = np.random.default_rng(seed)
    q, k, v = (generator.normal(size=(size, count)).astype(np.float32) for count in (tokens, keys, keys))
    lowest = np.finfo(np.float32).min
    mask = None if masked is None else np.where(generator.random(keys) < masked, lowest, 0).astype(np.float32)
    if mask is not None and masked < 1:
        mask[generator.integers(keys)] = 0
    expected = attention(
        q, k, v, scale=scale, mask=mask
    )  # equal weights where all is masked: the lowest float absorbs scores
    largest = np.abs(q.T @ k).max() * scale
    for name, path in library.paths.items():
        found = native.attend(path, q, k, v, scale=scale, mask=mask)
        assert (np.abs(found - expected) <= 2e-6 * (1 + largest) * np.abs(v).max()).all(), name


def test_the_exponential_of_a_softmax_is_within_3e_7_and_vanishes_below_minus_87(library):
    """Two keys whose scores are 0 and -t: the second one's weight over the first one's is e to the power of -t."""
    t = np.concatenate([np.linspace(0, 86.9, 3200 - 64), np.linspace(86.9, 88, 32), np.geomspace(88, 3e38, 32)]).astype(
        np.float32
    )
    k, v = np.zeros((4, 2), np.float32), np.zeros((4, 2), np.float32)
    k[0, 1], v[0, 0], v[1, 1] = -1, 1, 1
    for name, path in library.paths.items():
        for part in t.reshape(-1, 64):
            q = np.zeros((4, 64), np.float32)
            q[0] = part
            out = native.attend(path, q, k, v, scale=1).astype(np.float64)
            found, exact = out[1] / out[0], np.exp(-part.astype(np.float64))
            kept = part < 87
            assert (np.abs(found - exact)[kept] <= 3e-7 * exact[kept]).all(), name
            assert (found[~kept] == 0).all()
