"""The layout of kernels/tiles.h in numpy, as an oracle: tokens innermost, in tiles."""

from collections.abc import Iterator

import numpy as np

LANES, WIDEST = 16, 128


def padded(tokens: int) -> int:
    return -(-tokens // LANES) * LANES


def tiles(tokens: int) -> Iterator[slice]:
    """The tokens of each tile."""
    units = padded(tokens) // LANES
    ends = np.cumsum([len(part) for part in np.array_split(np.arange(units), max(1, -(-units * LANES // WIDEST)))]) * LANES
    start = 0
    for end in ends.tolist():
        if end > start:
            yield slice(start, end)
        start = end


def padding(x: np.ndarray, value: float = 0) -> np.ndarray:
    """[tokens, channels] with tokens of this value up to a multiple of 16."""
    return np.concatenate([x, np.full((padded(len(x)) - len(x), x.shape[1]), value, x.dtype)])


def tiled(x: np.ndarray) -> np.ndarray:
    """float[P, C] whose elements lie in tiles, of float[tokens, C]."""
    x = padding(x)
    return np.concatenate([x[tile].T.ravel() for tile in tiles(len(x))] or [x.ravel()]).reshape(x.shape)


def untiled(x: np.ndarray) -> np.ndarray:
    """float[P, C] of one whose elements lie in tiles."""
    flat, out = x.ravel(), np.empty_like(x)
    for tile in tiles(len(x)):
        channels = x.shape[1]
        out[tile] = flat[tile.start * channels : tile.stop * channels].reshape(channels, -1).T
    return out


def words(x: np.ndarray) -> np.ndarray:
    """uint8[P, C4] whose elements lie in tiles of words, of uint8[tokens, C]."""
    x = padding(x)
    x = np.concatenate([x, np.zeros((len(x), -x.shape[1] % 4), x.dtype)], axis=1)
    return np.ascontiguousarray(tiled(x.view(np.uint32)).view(np.uint8).reshape(x.shape))


def unworded(q: np.ndarray, channels: int) -> np.ndarray:
    """uint8[P, channels] of uint8[P, C4] whose elements lie in tiles of words. Channels that fill the last word are zero."""
    whole = untiled(np.ascontiguousarray(q).view(np.uint32)).view(np.uint8).reshape(q.shape)
    assert not whole[:, channels:].any()
    return whole[:, :channels]
