"""How each int8 matrix of a model runs: by the sparse kernel or by ONNX Runtime's own product. Sessions that run so.

    stock    ONNX Runtime's own operators alone
    sparse   the sparse kernel for every matrix
    auto     the faster one for each matrix, by a cost model that was measured (costs.py)

Needs onnxruntime, onnx, onnx-ir and numpy, no torch.
"""

import ctypes
import functools
import gc
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime

from pruneonce.deployment import accelerate, costs, runtime
from pruneonce.deployment.exact_sums import exact, saturates
from pruneonce.deployment.linears import Linear, linears
from pruneonce.deployment.sparse_form import narrow_form, sparse_form, stored_share
from pruneonce.errors import KernelsError, PackError, PruneOnceError

EXECUTIONS = ("auto", "stock", "sparse")
LIBRARY = Path(__file__).with_name("kernels.so")
log = logging.getLogger("pruneonce")


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


def plan(found: Iterable[Linear], *, execution: str, threads: int, processor: str | None) -> list[Matrix]:
    """How each linear runs. execution: of EXECUTIONS. threads: 0 for one a core.

    Raises KernelsError for "sparse" without the library.
    """
    if execution not in EXECUTIONS:
        raise KernelsError(f"expected an execution of {', '.join(EXECUTIONS)}, found {execution!r}.")
    if execution == "sparse" and processor is None:
        raise KernelsError(f"expected the library of the sparse kernels at {LIBRARY}, found none. {BUILD}")
    found = list(found)
    sizes = [costs.Size(len(linear.weight), linear.weight.shape[1], stored_share(linear.weight)) for linear in found]
    if execution != "auto":
        chosen = [(execution, "as asked for")] * len(found)
    elif processor in costs.COSTS:
        chosen = costs.faster(sizes, processor=processor, threads=threads)
    else:
        missing = f"no cost was measured on a processor of the kind {processor}"
        chosen = [("stock", missing if processor else "the library of the sparse kernels is not there")] * len(found)
    return [
        Matrix(linear.name, size.outputs, size.inputs, float((linear.weight == 0).mean()), size.stored, kernel, why)
        for linear, size, (kernel, why) in zip(found, sizes, chosen, strict=True)
    ]


BUILD = "Build it: `python -m kernels.build` in a clone, or `pip install .` with a C compiler."


def matrices(model: Path | bytes, *, execution: str, threads: int) -> list[Matrix]:
    """How each int8 matrix of a model would run on this processor. Raises PackError if the model cannot be read."""
    with _one_error():
        return plan(linears(_read(model).graph), execution=execution, threads=threads, processor=processor())


def accelerated(model: Path | bytes, *, execution: str, threads: int) -> bytes | None:
    """The model with the kernels' operators, as a file's bytes; None if ONNX Runtime runs all of it.

    Raises PackError if the model cannot be read.
    """
    with _one_error():
        read = _read(model)
        found = list(linears(read.graph))
        planned = plan(found, execution=execution, threads=threads, processor=processor())
        chosen = [linear for linear, matrix in zip(found, planned, strict=True) if matrix.kernel == "sparse"]
        if not chosen:
            return None
        accelerate.rewrite(read, chosen, form=narrow_form if processor() == "avx2" else sparse_form)
        return ir.to_proto(read).SerializeToString()


def session(model: Path | bytes, *, threads: int, execution: str, **options: Any) -> runtime.Session:
    """As `runtime.session`, whose further options it takes, with the sparse kernels. Also of a file that `accelerated` made.
    Sums of integers are exact on every processor.

    execution: of EXECUTIONS. Where the library is missing, "auto" says so in one line and runs the model without it.
    Raises KernelsError for "sparse" there. Raises PackError if the model cannot be loaded.
    """
    if execution == "auto" and processor() is None:
        log.warning(f"The library of the sparse kernels is not at {LIBRARY}: zeros save no time. {BUILD}")
        execution = "stock"
    stock = execution == "stock"
    # The rewritten model has no name here: it is free before its memory is given back.
    running = runtime.session(
        _exact(model if stock else accelerated(model, execution=execution, threads=threads) or model),
        threads=threads,
        operators=None if stock else LIBRARY,
        **options,
    )
    if not stock or saturates():  # else no graph was read
        _give_back_memory()
    return running


def _exact(model: Path | bytes) -> Path | bytes:
    """As `exact_sums.exact`. Raises PackError if the model cannot be read."""
    with _one_error():
        return exact(model)


def _give_back_memory() -> None:
    """What reading the graph took: its nodes refer to each other, and glibc keeps what is freed."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in every C library
    if trim is not None:
        trim(0)


def _read(model: Path | bytes) -> ir.Model:
    return ir.from_proto(onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(model))


@contextmanager
def _one_error() -> Iterator[None]:
    """Any error in the block is a PackError: those of protobuf, onnx and onnx-ir have no common base.

    A damaged file fails late: onnx-ir reads a tensor when it is asked for, and its type when the graph is written.
    """
    try:
        yield
    except PruneOnceError:
        raise
    except Exception as error:
        version = onnxruntime.__version__
        raise PackError(f"expected a model that ONNX Runtime {version} loads, found: {error}. Get the file again.") from None
