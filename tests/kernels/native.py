"""The C functions of kernels/ by ctypes: the structs of sparse.h and path.h, and calls with numpy arrays."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pruneonce.deployment.sparse_form import SparseForm

NAMES = ("portable", "avx2", "avxvnni", "avx512vnni")
NO_ACTIVATION, RELU, GELU, GELU_TANH = range(4)
GOOD, DAMAGED, NO_MEMORY = range(3)
CHUNK, NORMALIZED, ATTENDED = 32, 32, 64
Size, Pointer, Float, Int = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_float, ctypes.c_int32


class Sparse(ctypes.Structure):
    _fields_ = [
        *((name, Size) for name in ("outputs", "groups", "blocks", "chunks")),
        *((name, Pointer) for name in ("words", "index", "counts", "rows", "starts")),
        ("narrow", ctypes.c_int),
        ("sums", Pointer),
    ]


class Grid(ctypes.Structure):
    _fields_ = [("scale", Float), ("zero_point", Int)]


class Affine(ctypes.Structure):
    _fields_ = [("scale", Pointer), ("bias", Pointer), ("sums", Pointer), ("zero_point", Int), ("activation", ctypes.c_int)]


class Head(ctypes.Structure):
    _fields_ = [
        *((name, Size) for name in ("size", "keys")),
        *((name, Pointer) for name in "qkv"),
        *((name, Size) for name in ("q_stride", "kv_stride")),
        ("scale", Float),
        ("mask", Pointer),
    ]


class Functions(ctypes.Structure):
    """`Path` of path.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("multiply", ctypes.CFUNCTYPE(None, Pointer, Size, Size, Pointer, Size, Pointer)),
        ("finish", ctypes.CFUNCTYPE(None, Pointer, Pointer, Size, Size, Size, Pointer, Pointer, Grid)),
        ("normalize", ctypes.CFUNCTYPE(None, *[Pointer] * 4, Float, *[Size] * 3, Pointer, Pointer, Grid)),
        ("quantize", ctypes.CFUNCTYPE(None, Pointer, Size, Size, Size, Pointer, Size, Grid)),
        ("attend", ctypes.CFUNCTYPE(None, Pointer, Size, Pointer, Pointer)),
    ]


def address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


class Library:
    """The library with every function exported. paths: those that this processor runs, by name."""

    def __init__(self, file: Path):
        self._c = ctypes.CDLL(str(file))
        self._c.path_named.restype = ctypes.POINTER(Functions)
        self._c.pruneonce_processor.restype = ctypes.c_char_p
        found = {name: self._c.path_named(name.encode()) for name in NAMES}
        self.paths = {name: path.contents for name, path in found.items() if path}

    @property
    def processor(self) -> str:
        return self._c.pruneonce_processor().decode()

    def named(self, name: str) -> bool:
        return bool(self._c.path_named(name.encode()))

    @contextmanager
    def completed(self, form: SparseForm, *, outputs: int, inputs: int) -> Iterator[tuple[int, Sparse]]:
        """(status of sparse_complete, the struct)."""
        arrays = [np.ascontiguousarray(array) for array in (form.words, form.index, form.counts, form.rows)]
        sparse = Sparse(
            words=address(arrays[0]), index=address(arrays[1]), counts=address(arrays[2]), rows=address(arrays[3])
        )
        status = self._c.sparse_complete(ctypes.byref(sparse), Size(outputs), Size(inputs), Size(len(form.words)))
        yield status, sparse
        self._c.sparse_release(ctypes.byref(sparse))


def sums_of(sparse: Sparse) -> np.ndarray:
    """int32[outputs]: the sums of an output's weights."""
    assert sparse.sums is not None
    return np.ctypeslib.as_array(ctypes.cast(sparse.sums, ctypes.POINTER(Int)), (sparse.outputs,)).copy()


def multiply(path: Functions, sparse: Sparse, words: np.ndarray, width: int) -> np.ndarray:
    """int32[outputs, width] of a tile's words, uint32[groups, width]. The sums hold any value before."""
    acc = np.full((sparse.chunks * CHUNK, width), -123456789, np.int32)
    for block in range(sparse.blocks):
        for chunk in range(sparse.chunks):
            path.multiply(ctypes.addressof(sparse), block, chunk, address(words), width, address(acc[chunk * CHUNK :]))
    assert (acc[sparse.outputs :] == -123456789).all()
    return acc[: sparse.outputs]


def finish(
    path: Functions, acc: np.ndarray, *, scale, bias, sums, zero_point: int, activation: int, grid: Grid, begin: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(float[outputs, width], uint32[outputs / 4, width]) of int32[outputs, width]: the same by one output or both."""
    end, width = begin + len(acc), acc.shape[1]
    affine = Affine(address(scale), address(bias), address(sums), zero_point, activation)
    both = []
    for floats, grids in ((True, True), (True, False), (False, True)):
        y = np.full((end, width), np.nan, np.float32) if floats else None
        q = np.zeros((-(-end // 4), width), np.uint32) if grids else None
        path.finish(ctypes.addressof(affine), address(acc), begin, end, width, address(y), address(q), grid)
        both.append((y, q))
    np.testing.assert_array_equal(both[0][0], both[1][0])
    np.testing.assert_array_equal(both[0][1], both[2][1])
    return both[0]


def normalize(path: Functions, a, b, gain, bias, *, epsilon: float, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(float[C, width], uint32[C / 4, width]) of a and b, float[C, width]: a tile, NORMALIZED tokens at a time."""
    channels, width = a.shape
    y, q = np.empty_like(a), np.zeros((-(-channels // 4), width), np.uint32)
    for first in range(0, width, NORMALIZED):
        tokens = min(NORMALIZED, width - first)
        from_b = address(b[:, first:]) if b is not None else None
        given = (address(a[:, first:]), from_b, address(gain), address(bias))
        path.normalize(*given, epsilon, channels, tokens, width, address(y[:, first:]), address(q[:, first:]), grid)
    return y, q


def quantize(path: Functions, x: np.ndarray, grid: Grid) -> np.ndarray:
    """uint32[C / 4, tokens] of float[C, tokens]."""
    q = np.zeros((-(-len(x) // 4), x.shape[1]), np.uint32)
    path.quantize(address(x), x.shape[1], len(x), x.shape[1], address(q), x.shape[1], grid)
    return q


def attend(path: Functions, q, k, v, *, scale: float, mask: np.ndarray | None = None) -> np.ndarray:
    """float[size, tokens] of q, float[size, tokens], and k and v, float[size, keys]."""
    out, scratch = np.full_like(q, np.nan), np.full((k.shape[1], q.shape[1]), np.nan, np.float32)
    head = Head(len(q), k.shape[1], address(q), address(k), address(v), q.shape[1], k.shape[1], scale, address(mask))
    path.attend(ctypes.addressof(head), q.shape[1], address(out), address(scratch))
    return out


def channels_of(q: np.ndarray, channels: int) -> np.ndarray:
    """uint8[channels, width] of words, uint32[channels / 4, width]. Channels that fill the last word are zero."""
    split = q.view(np.uint8).reshape(*q.shape, 4).transpose(0, 2, 1).reshape(-1, q.shape[1])
    assert not split[channels:].any()
    return split[:channels]


def words_of(x: np.ndarray) -> np.ndarray:
    """uint32[inputs / 4, width] of uint8[inputs, width]."""
    filled = np.concatenate([x, np.zeros((-len(x) % 4, x.shape[1]), np.uint8)])
    return np.ascontiguousarray(filled.reshape(-1, 4, x.shape[1]).transpose(0, 2, 1)).view(np.uint32)[..., 0]
