"""The rate of the sparse kernel's inner loop alone, on one thread, as a share of what its loads allow.

A dot product is that of four weights with 16 tokens: one instruction. The loop loads, for each stored word, the word, its
index, and a register of activations for each 16 tokens. The processor loads two registers a cycle.
"""

import ctypes
import platform
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measuring import Row
from kernels import build
from pruneonce.deployment.sparse_form import SparseForm, sparse_form

SHAPES = ((768, 768), (3072, 768), (768, 3072))  # outputs, inputs
WEIGHTS = {"85 % anywhere": (1, 0.85), "90 % anywhere": (1, 0.9), "90 % in 1x4": (4, 0.9)}  # inputs that go together; zeros
TOKENS = (16, 64, 128)
LANES, LOADS = 16, 2  # tokens of a register; loads a cycle
REPEATS = 100
NOTE = (
    "One thread. A dot product is that of four weights with 16 tokens. The loop loads each stored word, its index, and a "
    "register of activations for each 16 tokens. Loads allow: two of these a cycle. The clock is that of scalar code; a "
    "processor may be slower while it uses wide registers."
)
SOURCES = ("kernels/path.c", "kernels/sparse.c", "benchmarks/rate.c")


def library(path: str, folder: Path) -> ctypes.CDLL:
    """The loops of a path beside rate.c, compiled as the kernels are."""
    target, output = platform.machine(), folder / "rate.so"
    machine = (f"-DPATH={path}", *build.PATHS[target][path])
    flags = [*build.COMPILE, *build.RELEASE.compile, *machine, "-Ikernels", "-D_POSIX_C_SOURCE=199309L"]
    build.run([*build.find_compiler(target), *flags, "-shared", *SOURCES, "-lm", "-o", str(output)])
    loaded = ctypes.CDLL(str(output))
    loaded.hertz.restype = loaded.product_seconds.restype = ctypes.c_double
    return loaded


def weight(outputs: int, inputs: int, together: int, sparsity: float) -> np.ndarray:
    """A random int8[outputs, inputs] with zeros in runs of `together` inputs."""
    draw = np.random.default_rng(1)
    kept = np.repeat(draw.random((outputs, inputs // together)) >= sparsity, together, axis=1)
    return (draw.integers(1, 128, (outputs, inputs)) * kept).astype(np.int8)


def roofline(tokens: int) -> float:
    """Dot products a cycle that the loads allow, for up to 128 tokens."""
    registers = tokens / LANES
    return LOADS * registers / (registers + 2)


def seconds(loops: ctypes.CDLL, form: SparseForm, outputs: int, inputs: int, tokens: int) -> float:
    arrays = [array.ctypes.data_as(ctypes.c_void_p) for array in (form.words, form.index, form.counts, form.rows)]
    sizes = map(ctypes.c_size_t, (outputs, inputs, len(form.words)))
    return loops.product_seconds(*sizes, *arrays, ctypes.c_size_t(tokens), REPEATS)


def rates() -> list[Row]:
    """Dot products a cycle, by weight and tokens."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        loops = library("avx512vnni", Path(folder))
        hertz = max(loops.hertz() for _ in range(5))
        for name, (together, sparsity) in WEIGHTS.items():
            for outputs, inputs in SHAPES:
                form = sparse_form(weight(outputs, inputs, together, sparsity))
                for tokens in TOKENS:
                    cycles = hertz * seconds(loops, form, outputs, inputs, tokens)
                    rate = len(form.words) * tokens / LANES / cycles
                    rows.append(
                        {
                            "weights": name,
                            "outputs x inputs": f"{outputs} x {inputs}",
                            "tokens": tokens,
                            "dot products a cycle": rate,
                            "loads allow": roofline(tokens),
                            "%": 100 * rate / roofline(tokens),
                        }
                    )
    return rows
