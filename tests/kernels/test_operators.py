"""Each operator on its own in ONNX Runtime, on every path: against ONNX's own operators, and against float64."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import special

from tests.kernels import layout, models, test_paths
from tests.kernels.models import FLOAT, GRID, UINT8, node

THREADS = (1, 2, 4)
SHAPES = [(7,), (1, 1), (0, 5), (1, 9), (16, 3), (3, 5, 6), (2, 300, 4), (2, 0, 3, 8), (2, 1, 2, 3, 2, 1, 5, 3), (600, 33)]


def numbers(*shape: int, seed: int = 0, spread: float = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tile_and_untile_return_what_came_in(library_file, path_name, shape):
    tile = node("Tile", ["x"], ["tiles"])
    made = models.model([tile, node("Untile", ["tiles", "x"], ["y"])], {"x": FLOAT}, {"tiles": FLOAT, "y": FLOAT})
    x = numbers(*shape)
    for threads in THREADS:
        tiles, y = models.session(made, library_file, threads=threads).run(None, {"x": x})
        np.testing.assert_array_equal(y, x)
        np.testing.assert_array_equal(tiles, layout.tiled(x.reshape(-1, shape[-1])))


def test_untile_takes_the_axes_of_like_and_the_channels_of_x(library_file):
    made = models.model([node("Untile", ["x", "like"], ["y"])], {"x": FLOAT, "like": FLOAT}, {"y": FLOAT})
    x = numbers(30, 5)
    (y,) = models.session(made, library_file).run(None, {"x": layout.tiled(x), "like": numbers(2, 3, 5, 999)})
    np.testing.assert_array_equal(y, x.reshape(2, 3, 5, 5))


@pytest.mark.parametrize("zero_point", [0, 3, 128, 255])
@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (37, 6), (300, 33)], ids=str)
def test_quantize_is_quantize_linear(library_file, path_name, shape, zero_point):
    """Bit for bit where x / scale is no half. There x times 1 / scale, which this takes, may fall on the other side."""
    scale = 0.037
    grid = {"output_scale": scale, "output_zero_point": zero_point}
    constants = {"scale": np.float32(scale), "zero": np.uint8(zero_point)}
    nodes = [
        node("Tile", ["x"], ["tiles"]),
        node("Quantize", ["tiles"], ["q"], **grid),
        node("QuantizeLinear", ["x", "scale", "zero"], ["expected"], domain=""),
    ]
    made = models.model(nodes, {"x": FLOAT}, {"q": UINT8, "expected": UINT8}, constants)
    x = numbers(*shape, spread=6)
    x.flat[: min(3, x.size)] = [np.inf, -np.inf, 1e30][: min(3, x.size)]
    q, expected = models.session(made, library_file).run(None, {"x": x})
    found = layout.unworded(q, shape[1])[: shape[0]]
    exact = np.clip(x.astype(np.float64) / np.float32(scale), -999, 999)
    half = np.abs(np.abs(exact - np.rint(exact)) - 0.5) < 2.0**-22 * np.abs(exact)
    np.testing.assert_array_equal(found[~half], expected[~half])
    assert (np.abs(found.astype(int) - expected) <= half).all()


def quantized_linear(weight, scale, bias, *, input_scale: float, zero_point: int):
    """(nodes, constants) of the same linear by ONNX's own operators: x float[..., K] -> y."""
    constants = {
        "input_scale": np.float32(input_scale),
        "zero": np.uint8(zero_point),
        "weight": np.ascontiguousarray(weight.T),
        "weight_scale": scale,
        "weight_zero": np.zeros(len(scale), np.int8),
        "onnx_bias": bias,
    }
    nodes = [
        node("QuantizeLinear", ["x", "input_scale", "zero"], ["qx"], domain=""),
        node("DequantizeLinear", ["qx", "input_scale", "zero"], ["dx"], domain=""),
        node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["dw"], domain="", axis=1),
        node("MatMul", ["dx", "dw"], ["product"], domain=""),
        node("Add", ["product", "onnx_bias"], ["expected"], domain=""),
    ]
    return nodes, constants


@pytest.mark.parametrize("zero_point", [0, 131, 255])
@pytest.mark.parametrize(
    ("shape", "outputs"),
    [((1, 1, 3), 1), ((2, 65, 100), 33), ((1, 130, 1537), 95), ((1, 33, 50), 161), ((1, 150, 9), 700), ((0, 4, 8), 8)],
    ids=str,
)
def test_sparse_linear_is_the_quantized_linear_of_onnx(library, library_file, path_name, shape, outputs, zero_point):
    """Bit for bit: ONNX Runtime makes one operator of its five, with exact sums where the processor has VNNI."""
    generator = np.random.default_rng(outputs)
    weight = models.sparse(generator, outputs, shape[-1])
    scale = generator.uniform(0.001, 0.01, outputs).astype(np.float32)
    bias = numbers(outputs, seed=1)
    input_scale = np.float32(0.031)
    grid = {"output_scale": 0.05, "output_zero_point": 120}
    ours, constants = models.linear("q", ["y", "yq"], weight, scale * input_scale, bias, zero_point=zero_point, **grid)
    nodes, others = quantized_linear(weight, scale, bias, input_scale=input_scale, zero_point=zero_point)
    first = [
        node("Tile", ["x"], ["tiles"]),
        node("Quantize", ["tiles"], ["q"], output_scale=0.031, output_zero_point=zero_point),
    ]
    last = [
        node("Untile", ["y", "x"], ["plain"]),
        node("Tile", ["plain"], ["again"]),
        node("Quantize", ["again"], ["again_q"], **grid),
    ]
    made = models.model(
        [*first, ours, *last, *nodes],
        {"x": FLOAT},
        {"plain": FLOAT, "expected": FLOAT, "yq": UINT8, "again_q": UINT8},
        constants | others,
    )
    x = numbers(*shape, spread=2)
    results = [models.session(made, library_file, threads=threads).run(None, {"x": x}) for threads in THREADS]
    qx = np.clip(np.rint(x / input_scale) + zero_point, 0, 255).astype(np.int64)
    sums = ((qx - zero_point) @ weight.T.astype(np.int64)).astype(np.float32)
    exact = sums * (scale * input_scale) + bias
    tokens = int(np.prod(shape[:-1]))
    for plain, expected, yq, again_q in results:
        np.testing.assert_array_equal(plain, exact)
        np.testing.assert_array_equal(layout.unworded(yq, outputs)[:tokens], layout.unworded(again_q, outputs)[:tokens])
        if {"avxvnni", "avx512vnni"} & set(library.paths):
            np.testing.assert_array_equal(plain, expected)


@pytest.mark.parametrize("activation", range(4))
@pytest.mark.parametrize("outs", [("y", ""), ("", "q"), ("y", "q")], ids=" ".join)
def test_sparse_linear_writes_what_the_model_names(library_file, path_name, activation, outs):
    generator = np.random.default_rng(1)
    weight = models.sparse(generator, 70, 64)
    scale, bias = np.full(70, 0.003, np.float32), numbers(70)
    ours, constants = models.linear("x", outs, weight, scale, bias, zero_point=9, activation=activation)
    kinds = {"y": FLOAT, "q": UINT8}
    made = models.model([ours], {"x": UINT8}, {name: kinds[name] for name in outs if name}, constants)
    x = generator.integers(0, 256, (20, 64), np.uint8)
    found = dict(zip(filter(None, outs), models.session(made, library_file).run(None, {"x": layout.words(x)}), strict=True))
    plain = (x - 9.0) @ weight.T * 0.003 + bias
    expected = [plain, np.maximum(plain, 0), plain * special.ndtr(plain), test_paths.gelu_tanh(plain)][activation]
    if "y" in found:
        np.testing.assert_allclose(layout.untiled(found["y"])[:20], expected, rtol=1e-5, atol=1e-4)
    if "q" in found:
        q = layout.unworded(found["q"], 70)[:20]
        assert np.abs(q - np.clip(np.rint(expected / 0.1) + 128, 0, 255)).max() <= 1
        assert np.ptp(q.astype(int)) > 50


def test_a_weight_of_zeros_gives_the_bias(library_file, path_name):
    """It has no words: ONNX Runtime hands the kernel a tensor without memory."""
    bias = numbers(40)
    ours, constants = models.linear("x", ["y"], np.zeros((40, 8), np.int8), np.ones(40, np.float32), bias, zero_point=9)
    assert constants["words"].size == 0
    made = models.model([ours], {"x": UINT8}, {"y": FLOAT}, constants)
    (y,) = models.session(made, library_file).run(None, {"x": np.full((16, 8), 255, np.uint8)})
    np.testing.assert_array_equal(layout.untiled(y), np.broadcast_to(bias, (16, 40)))


def test_activations_may_lie_at_any_address(library_file, path_name):
    """An input of the model is the caller's memory."""
    weight = models.sparse(np.random.default_rng(1), 40, 400)
    ours, constants = models.linear("x", ["y"], weight, np.ones(40, np.float32), np.zeros(40, np.float32), zero_point=0)
    run = models.session(models.model([ours], {"x": UINT8}, {"y": FLOAT}, constants), library_file).run
    x = np.random.default_rng(2).integers(0, 256, (160, 400), np.uint8)
    memory = np.zeros(x.size + 64, np.uint8)
    for offset in (0, 1, 2, 3, 5):
        moved = memory[offset : offset + x.size].reshape(x.shape)
        moved[:] = layout.words(x)
        np.testing.assert_array_equal(layout.untiled(run(None, {"x": moved})[0]), x.astype(np.float32) @ weight.T)


# ---- layer normalization ----


@pytest.mark.parametrize("residual", ["b", ""], ids=["residual", "none"])
@pytest.mark.parametrize(("tokens", "channels"), [(0, 4), (1, 1), (17, 30), (130, 64), (385, 7), (600, 384)])
def test_add_normalize_is_layer_normalization(library_file, path_name, tokens, channels, residual):
    constants = {"gain": numbers(channels, seed=1), "bias": numbers(channels, seed=2)}
    nodes = [node("Tile", [name], [f"{name}_tiles"]) for name in ("a", "b")]
    b = "b_tiles" if residual else ""
    nodes += [
        node("AddNormalize", ["a_tiles", b, "gain", "bias"], ["y", "q"], epsilon=1e-5, **GRID),
        node("Sum", ["a", "b"] if residual else ["a"], ["total"], domain=""),
        node("LayerNormalization", ["total", "gain", "bias"], ["expected"], domain="", epsilon=1e-5),
    ]
    outputs = {"y": FLOAT, "q": UINT8, "expected": FLOAT}
    made = models.model(nodes, {"a": FLOAT, "b": FLOAT}, outputs, constants)
    feeds = {name: numbers(tokens, channels, seed=ord(name)) for name in "ab"}
    results = [models.session(made, library_file, threads=threads).run(None, feeds) for threads in THREADS]
    for tiles, words, expected in results:
        y, q = layout.untiled(tiles)[:tokens], layout.unworded(words, channels)[:tokens]
        np.testing.assert_allclose(y, expected, rtol=0, atol=2e-5)
        np.testing.assert_array_equal(tiles, results[0][0])
        near = np.abs(q - np.clip(y / np.float32(0.1) + 128, 0, 255))
        assert (near <= 0.5001).all()


# ---- attention ----


def attended(x: np.ndarray, *, heads: int, scale: float, mask: np.ndarray | None) -> np.ndarray:
    """float64[texts, length, C] of float[texts, length, 3 C] and float[texts or 1, 1, 1, length]."""
    texts, length, width = x.shape
    q, k, v = x.astype(np.float64).reshape(texts, length, 3, heads, width // 3 // heads).transpose(2, 0, 3, 1, 4)
    scores = q @ k.transpose(0, 1, 3, 2) * np.float64(np.float32(scale))
    scores = scores + (0 if mask is None else mask)
    mixed = special.softmax(scores, axis=-1) @ v if length else q
    return mixed.transpose(0, 2, 1, 3).reshape(texts, length, width // 3)


LOWEST = np.finfo(np.float32).min


def masks(texts: int, length: int) -> dict[str, np.ndarray | None]:
    """By what they hide. A text that is hidden whole has equal weights: each score and the lowest float make the lowest."""
    some = np.random.default_rng(length).random((texts, 1, 1, length)) < 0.4
    ends = np.arange(length) >= np.linspace(1, length, texts).astype(int)[:, None, None, None]
    whole = np.broadcast_to((np.arange(texts) % 2 == 0)[:, None, None, None], (texts, 1, 1, length))
    hidden = {
        "some": some,
        "their ends": ends,
        "every second text": whole,
        "the same of all": ends[:1],
        "nothing": ends & False,
    }
    return {"no mask": None} | {name: np.where(which, LOWEST, 0).astype(np.float32) for name, which in hidden.items()}


LENGTHS = [(1, 1), (3, 1), (1, 16), (5, 7), (2, 33), (2, 65), (9, 15), (2, 130), (1, 384), (3, 200), (0, 8), (4, 0)]


@pytest.mark.parametrize("hides", masks(1, 1))
@pytest.mark.parametrize(("texts", "length"), LENGTHS)
def test_attention(library_file, path_name, texts, length, hides):
    """Texts that begin and end within tiles, and span some."""
    heads, size = 3, 8
    mask = masks(texts, length)[hides]
    inputs = ["tiles", "like", "mask" if mask is not None else ""]
    nodes = [
        node("Tile", ["x"], ["tiles"]),
        node("Attention", inputs, ["t", "q"], heads=heads, scale=0.35, **GRID),
        node("Untile", ["t", "like"], ["y"]),
    ]
    given = {"x": numbers(texts, length, 3 * heads * size), "like": np.zeros((texts, length, 2), np.float32)}
    given |= {} if mask is None else {"mask": mask}
    made = models.model(nodes, dict.fromkeys(given, FLOAT), {"y": FLOAT, "q": UINT8})
    y, q = models.session(made, library_file, threads=THREADS[length % 3]).run(None, given)
    expected = attended(given["x"], heads=heads, scale=0.35, mask=mask)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    words = layout.unworded(q, heads * size)[: texts * length]
    near = np.clip(y.reshape(-1, heads * size) / np.float32(0.1) + 128, 0, 255)
    assert (np.abs(words - near) <= 0.5001).all()


def test_attention_gives_the_same_bits_for_any_number_of_threads(library_file, path_name):
    nodes = [node("Tile", ["x"], ["tiles"]), node("Attention", ["tiles", "x"], ["y"], heads=2, scale=0.3, **GRID)]
    made = models.model(nodes, {"x": FLOAT}, {"y": FLOAT})
    x = numbers(3, 150, 96)
    first, *others = (models.session(made, library_file, threads=threads).run(None, {"x": x})[0] for threads in THREADS)
    for other in others:
        np.testing.assert_array_equal(layout.untiled(other)[: 3 * 150], layout.untiled(first)[: 3 * 150])


# ---- all of them together ----


def block(channels: int = 32):
    """A model of every operator; x is float[texts, length, channels]."""
    generator = np.random.default_rng(5)
    grid = {"output_scale": 0.05, "output_zero_point": 128}
    constants, nodes = {}, [node("Tile", ["x"], ["tiles"]), node("Quantize", ["tiles"], ["qx"], **grid)]
    for name, source, outputs in (("first", "qx", 3 * channels), ("second", "mixed", channels)):
        weight = models.sparse(generator, outputs, channels)
        scale, bias = np.full(outputs, 0.002, np.float32), numbers(outputs)
        made, stored = models.linear(source, [name], weight, scale, bias, zero_point=128, activation=0)
        renamed = {old: f"{name}_{old}" for old in stored}
        made.input[:] = [renamed.get(old, old) for old in made.input]
        constants |= {renamed[old]: array for old, array in stored.items()}
        nodes.append(made)
        if name == "first":
            nodes.append(node("Attention", ["first", "x"], ["", "mixed"], heads=4, scale=0.35, **grid))
    constants |= {"gain": numbers(channels, seed=3), "beta": numbers(channels, seed=4)}
    nodes += [
        node("AddNormalize", ["second", "tiles", "gain", "beta"], ["normal"], epsilon=1e-5, **grid),
        node("Untile", ["normal", "x"], ["y"]),
    ]
    return models.model(nodes, {"x": FLOAT}, {"y": FLOAT}, constants)


def test_threads_may_call_one_session_and_several_at_the_same_time(library_file, path_name):
    """Calls of one session share its threads, calls of all share the memory that is kept for a moment."""
    texts = [numbers(1 + i % 3, 1 + 37 * i % 160, 32, seed=i) for i in range(12)]
    sessions = [models.session(block(), library_file, threads=threads) for threads in THREADS]
    expected = [sessions[0].run(None, {"x": x})[0] for x in texts]
    assert all(np.isfinite(y).all() for y in expected)
    start = threading.Barrier(6)

    def calls(seed: int) -> int:
        start.wait()
        order = np.random.default_rng(seed).integers(len(texts), size=20)
        for at in order:
            np.testing.assert_array_equal(sessions[(seed + at) % 3].run(None, {"x": texts[at]})[0], expected[at])
        return len(order)

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(calls, range(6))) == 120


def test_sessions_may_come_and_go_while_others_run(library_file):
    x = numbers(2, 50, 32)
    stays = models.session(block(), library_file, threads=2)
    (expected,) = stays.run(None, {"x": x})

    def comes(_: int) -> None:
        np.testing.assert_array_equal(models.session(block(), library_file).run(None, {"x": x})[0], expected)
        np.testing.assert_array_equal(stays.run(None, {"x": x})[0], expected)

    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(comes, range(24)))) == 24
