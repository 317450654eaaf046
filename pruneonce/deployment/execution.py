"""How each int8 matrix of a model runs: by the sparse kernel or by ONNX Runtime's own product. Sessions that run so.

    stock    ONNX Runtime's own operators alone
    sparse   the sparse kernel for every matrix
    auto     the faster one for each matrix, by a cost model that was measured (`COSTS`)

Needs onnxruntime, onnx-ir and numpy, no torch.
"""

import ctypes
import functools
import gc
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime

from pruneonce.deployment import rewriting, runtime
from pruneonce.deployment.sparse_form import narrow_form, sparse_form, stored_share
from pruneonce.errors import KernelsError, PackError

EXECUTIONS = ("auto", "stock", "sparse")
LIBRARY = Path(__file__).with_name("kernels.so")
log = logging.getLogger("pruneonce")


@dataclass(frozen=True)
class Cost:
    """Cycles of one thread for one token. The sparse kernel: `word` for each 16th of a stored word, which is four weights.

    ONNX Runtime: 1 / `products` for each weight, and `activation` for each input and output, in what the sparse
    kernel's neighbours do in the same pass: to quantize, to transpose, to normalize.
    most_stored: the largest share of stored words at which the sparse kernel kept up at every measured shape. With few
    tokens it reads more bytes than ONNX Runtime where more words are stored.
    """

    word: float
    products: float
    activation: float
    most_stored: float


# By the processor, as kernels/processor.c names it. Measured by benchmarks/sparse.py on an Intel Xeon with AMX (Sapphire
# Rapids), from which the newer instructions were hidden one after the other. On a processor without any of them ONNX Runtime
# runs all.
COSTS = {
    "avx2": Cost(word=2.2, products=30, activation=0.6, most_stored=0.6),
    "avxvnni": Cost(word=1.45, products=62, activation=1.4, most_stored=0.6),
    "avx512vnni": Cost(word=1.25, products=74, activation=1.5, most_stored=0.6),
    "avx512vnni amx": Cost(word=1.25, products=206, activation=1.5, most_stored=0.6),
}


@dataclass(frozen=True)
class Matrix:
    """An int8 matrix, [outputs, inputs]. zeros, stored: shares of weights that are zero, of words that are not.

    kernel: "sparse" or "stock". why: in a few words.
    """

    name: str
    outputs: int
    inputs: int
    zeros: float
    stored: float
    kernel: str
    why: str


def processor() -> str | None:
    """This processor, as the library names it; None where the library is missing or cannot be loaded."""
    return _library_says(str(LIBRARY))


@functools.lru_cache
def _library_says(path: str) -> str | None:
    try:
        library = ctypes.CDLL(path)
    except OSError:
        return None
    library.pruneonce_processor.restype = ctypes.c_char_p
    return library.pruneonce_processor().decode()


def plan(linears: Iterable[rewriting.Linear], execution: str, processor: str | None) -> list[Matrix]:
    """How each linear runs. execution: of EXECUTIONS. Raises KernelsError for "sparse" without the library."""
    if execution not in EXECUTIONS:
        raise KernelsError(f"expected an execution of {', '.join(EXECUTIONS)}, found {execution!r}.")
    if execution == "sparse" and processor is None:
        raise KernelsError(f"expected the library of the sparse kernels at {LIBRARY}, found none. {BUILD}")
    return [_matrix(linear, execution, processor) for linear in linears]


BUILD = "Build it: `python -m kernels.build` in a clone, or `pip install .` with a C compiler."


def _matrix(linear: rewriting.Linear, execution: str, processor: str | None) -> Matrix:
    weight = linear.weight
    outputs, inputs = weight.shape
    zeros, stored = float((weight == 0).mean()), stored_share(weight)
    kernel, why = execution, "as asked for"
    if execution == "auto":
        kernel, why = _faster(outputs, inputs, stored, processor)
    return Matrix(linear.name, outputs, inputs, zeros, stored, kernel, why)


def _faster(outputs: int, inputs: int, stored: float, processor: str | None) -> tuple[str, str]:
    if processor is None:
        return "stock", "the library of the sparse kernels is not there"
    cost = COSTS.get(processor)
    if cost is None:
        return "stock", f"no cost was measured on a processor of the kind {processor}"
    if stored > cost.most_stored:
        return "stock", f"more than {cost.most_stored:.0%} of its words are stored"
    sparse = cost.word * stored * outputs * inputs / 64
    stock = outputs * inputs / cost.products + cost.activation * (outputs + inputs)
    return ("sparse" if sparse < stock else "stock"), f"{sparse:,.0f} cycles, stock {stock:,.0f}"


def matrices(model: Path | bytes, execution: str) -> list[Matrix]:
    """How each int8 matrix of a model would run on this processor. Raises PackError if the model cannot be read."""
    return plan(rewriting.linears(_read(model).graph), execution, processor())


def accelerated(model: Path | bytes, execution: str) -> bytes | None:
    """The model with the kernels' operators, as a file's bytes; None if ONNX Runtime runs all of it.

    Raises PackError if the model cannot be read.
    """
    read = _read(model)
    linears = list(rewriting.linears(read.graph))
    chosen = {matrix.name for matrix in plan(linears, execution, processor()) if matrix.kernel == "sparse"}
    if not chosen:
        return None
    rewriting.rewrite(read, chosen=chosen, form=narrow_form if processor() == "avx2" else sparse_form)
    return ir.to_proto(read).SerializeToString()


def session(model: Path | bytes, *, threads: int, execution: str, **options: Any) -> runtime.Session:
    """As `runtime.session`, whose further options it takes, with the sparse kernels. Also of a file that `accelerated` made.

    execution: of EXECUTIONS. Where the library is missing, "auto" says so in one line and runs the model without it.
    Raises KernelsError for "sparse" there. Raises PackError if the model cannot be loaded.
    """
    if execution == "stock":
        return runtime.session(model, threads=threads, **options)
    if execution == "auto" and processor() is None:
        log.warning(f"The library of the sparse kernels is not at {LIBRARY}: zeros save no time. {BUILD}")
        return runtime.session(model, threads=threads, **options)
    running = runtime.session(accelerated(model, execution) or model, threads=threads, operators=LIBRARY, **options)
    _give_back_memory()
    return running


def _give_back_memory() -> None:
    """What the rewriting took: the nodes of a graph refer to each other, and glibc keeps what is freed."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in every C library
    if trim is not None:
        trim(0)


def _read(model: Path | bytes) -> ir.Model:
    try:
        return ir.from_proto(onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(model))
    except Exception as error:  # protobuf's and onnx' errors have no common base
        version = onnxruntime.__version__
        raise PackError(f"expected a model that ONNX Runtime {version} loads, found: {error}. Get the file again.") from None
