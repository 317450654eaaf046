"""By which kernel each int8 matrix of a model runs on this processor, and why: what `pruneonce inspect` prints."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pruneonce.deployment import execution as running
from pruneonce.deployment.execution import Matrix

HEADER = ("matrix", "size", "zeros", "words", "kernel", "why")


def lines(model: Path | bytes, name: Path, *, execution: str, threads: int) -> Iterator[str]:
    """The lines: this processor, a table, the number of matrices by kernel. Raises PackError if the model cannot be read.

    model: what the file `name` holds. execution, threads: as `execution.session` takes them.
    """
    matrices = running.matrices(model, execution=execution, threads=threads)
    if not matrices:
        yield f"{name} has no int8 matrix for which there is a choice: it is all in float, or was accelerated already."
        return
    yield _processor(threads)
    reasons = {matrix.why for matrix in matrices}
    columns = len(HEADER) - (len(reasons) == 1)
    yield from _table([row[:columns] for row in (HEADER, *map(_cells, matrices))])
    kernels = Counter(matrix.kernel for matrix in matrices)
    counted = f"{len(matrices)} matrices: " + ", ".join(f"{count} {kernel}" for kernel, count in kernels.most_common())
    yield counted + (f", {reasons.pop()}" if len(reasons) == 1 else "; cycles are those of all threads for one token")


def _processor(threads: int) -> str:
    found = running.processor()
    if found is None:
        return f"no library of the sparse kernels at {running.LIBRARY}. {running.BUILD}"
    return f"processor: {found}, {_words(threads)}; library: {running.LIBRARY}"


def _words(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}" if threads else "a thread for each core"


def _cells(matrix: Matrix) -> tuple[str, ...]:
    size = f"{matrix.outputs}x{matrix.inputs}"
    return (
        matrix.name.removesuffix(".weight"),
        size,
        f"{matrix.zeros:.1%}",
        f"{matrix.stored:.1%}",
        matrix.kernel,
        matrix.why,
    )


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows in columns: numbers to the right, words to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<" if name in ("matrix", "kernel", "why") else ">" for name in HEADER]
    for row in rows:
        yield "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=False)).rstrip()
