"""Which kernel is faster for each int8 matrix of a model, by a cost model that was measured: the choice of `auto`."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What a matrix costs for one token, in cycles of all threads together.

    word: of the sparse kernel, for a 16th of a stored word. A word is four weights.
    products: of ONNX Runtime, weights in a cycle.
    activation: of ONNX Runtime, for each input and output, (with one thread, with several). It quantizes, transposes and
    normalizes in passes of their own, which threads share badly. The sparse kernel does so together with its product.
    """

    word: float
    products: float
    activation: tuple[float, float]


# By the processor, as kernels/processor.c names it. Fitted to whole calls of BERT-Base and MiniLM-L6 (benchmarks/sparse.py)
# on an Intel Xeon with AMX (Sapphire Rapids). The newer instructions were hidden from it one after the other.
COSTS = {
    "avx2": Cost(word=2.2, products=30, activation=(0.6, 0.6)),
    "avxvnni": Cost(word=1.45, products=62, activation=(1.4, 1.4)),
    "avx512vnni": Cost(word=1.25, products=74, activation=(1.5, 1.5)),
    "avx512vnni amx": Cost(word=1.25, products=202, activation=(1.7, 3.3)),
}
# The largest share of stored words at which the sparse kernel kept up at every measured shape. Where there are more, and few
# tokens, it reads more bytes than ONNX Runtime.
MOST_STORED = 0.6
# Cycles for each number that goes from a matrix of one kernel to one of the other: they have other layouts.
CONVERSION = 4


@dataclass(frozen=True)
class Size:
    """A matrix, [outputs, inputs], of whose words the share `stored` is not all zero."""

    outputs: int
    inputs: int
    stored: float


def faster(sizes: Sequence[Size], *, processor: str, threads: int) -> list[tuple[str, str]]:
    """(kernel, why) of each matrix, in the model's order, so that all of them together take least time.

    kernel: "sparse" or "stock". processor: of COSTS. threads: 0 for one a core.
    """
    several = (threads or _cores()) > 1
    cycles = [_cycles(size, COSTS[processor], several) for size in sizes]
    kernels = _cheapest(sizes, cycles) if sizes else []
    return [(kernel, _why(kernel, cost, size)) for kernel, cost, size in zip(kernels, cycles, sizes, strict=True)]


def _cores() -> int:
    """Cores of this machine, each one once, as ONNX Runtime counts them; not their hyperthreads."""
    siblings = {path.read_text() for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/core_cpus_list")}
    return len(siblings) or os.cpu_count() or 1


def _cycles(size: Size, cost: Cost, several: bool) -> dict[str, float]:
    """By kernel."""
    weights = size.outputs * size.inputs
    return {
        "sparse": cost.word * size.stored * weights / 64 if size.stored <= MOST_STORED else math.inf,
        "stock": weights / cost.products + cost.activation[several] * (size.outputs + size.inputs),
    }


def _cheapest(sizes: Sequence[Size], cycles: Sequence[dict[str, float]]) -> list[str]:
    """The kernels with the smallest sum of cycles and conversions. Before and after these matrices all is stock."""
    end = (sizes[-1].outputs, {"sparse": math.inf, "stock": 0.0})
    best: dict[str, tuple[float, list[str]]] = {"stock": (0.0, [])}  # by the last kernel: all cycles up to it, the kernels
    for numbers, cost in [*zip([size.inputs for size in sizes], cycles, strict=True), end]:
        best = {
            kernel: min(
                (total + cost[kernel] + CONVERSION * numbers * (last != kernel), [*kernels, kernel])
                for last, (total, kernels) in best.items()
            )
            for kernel in cost
        }
    return best["stock"][1][:-1]


def _why(kernel: str, cycles: dict[str, float], size: Size) -> str:
    if size.stored > MOST_STORED:
        return f"more than {MOST_STORED:.0%} of its words are stored"
    more = "" if kernel == min(cycles, key=cycles.__getitem__) else ", less than with conversions"
    return f"{cycles['sparse']:,.0f} cycles, stock {cycles['stock']:,.0f}{more}"
