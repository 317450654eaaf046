"""What an ONNX file holds, and how each matrix runs here: what `pruneonce inspect` prints, as lines and as JSON."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pruneonce.deployment import execution as running
from pruneonce.deployment import layers, packing
from pruneonce.deployment.layers import Layer
from pruneonce.errors import plain

QUICK = 32 << 20  # bytes of an ONNX file that is packed within two seconds
# What a file says of itself: the entries that a part of the line needs, and the part.
FACTS = (
    (("task",), "{task}"),
    (("variant",), "{variant}"),
    (("metric", "value", "split"), "{metric} {value} on {split}"),
    (("sparsity",), "sparsity {sparsity}"),
    (("pattern",), "{pattern}"),
    (("bits",), "{bits} bits"),
    (("max_tokens",), "at most {max_tokens} tokens"),
)
RIGHT = ("size", "zeros", "bits", "bytes", "words")  # columns of numbers


@dataclass(frozen=True)
class Row:
    """A matrix that is multiplied. words: share that the sparse kernel stores; None where it has no sparse form."""

    layer: Layer
    words: float | None
    kernel: str
    why: str


@dataclass(frozen=True)
class Overview:
    """A file, as `pruneonce inspect` shows it. bytes, packed_bytes: of the ONNX file, and packed; None: not counted."""

    file: Path
    bytes: int
    packed_bytes: int | None
    content: layers.Content
    rows: list[Row]
    processor: str | None
    threads: int


def of(model: Path | bytes, name: Path, *, execution: str, threads: int) -> Overview:
    """What is known of a file. Raises PackError if it cannot be read, KernelsError as `execution.session` does.

    model: what the file `name` holds. execution, threads: as `execution.session` takes them.
    """
    chosen = {
        each.name.removesuffix(".weight"): each for each in running.matrices(model, execution=execution, threads=threads)
    }
    content = layers.content(model)
    rows = []
    for layer in (layer for layer in content.layers if layer.role == "linear"):
        found = chosen.get(layer.name)
        words, kernel, why = (found.stored, found.kernel, found.why) if found else (None, "stock", _no_choice(layer))
        rows.append(Row(layer, words, kernel, why))
    size = len(model) if isinstance(model, bytes) else model.stat().st_size
    packed = name.stat().st_size if isinstance(model, bytes) else packing.packed_bytes(model) if size <= QUICK else None
    return Overview(name, size, packed, content, rows, running.processor(), threads)


def _no_choice(layer: Layer) -> str:
    return "float" if layer.bits > 8 else "no form for the sparse kernel"


def as_json(found: Overview) -> dict[str, Any]:
    """The structure that docs/commands.md describes. Shares are in [0, 1]."""
    linear = [] if found.content.operators else [row.layer for row in found.rows]  # their weights have another form
    return {
        "format": 1,
        "file": str(found.file),
        "about": found.content.about,
        "processor": found.processor,
        "library": str(running.LIBRARY),
        "threads": found.threads,
        "layers": [
            {**asdict(row.layer), "words": row.words, "kernel": row.kernel, "why": row.why}
            for row in (*found.rows, *(Row(each, None, "stock", "looked up") for each in _embeddings(found)))
        ],
        "totals": {
            "parameters": found.content.parameters,
            "bytes": found.bytes,
            "packed_bytes": found.packed_bytes,
            "sparsity": _sparsity([layer for layer in linear if layer.prunable] or linear),
            "kernels": dict(Counter(row.kernel for row in found.rows)),
            "accelerated_operators": found.content.operators,
        },
    }


def _embeddings(found: Overview) -> list[Layer]:
    return [layer for layer in found.content.layers if layer.role == "embedding"]


def _sparsity(some: Sequence[Layer]) -> float | None:
    """Share of zeros in all of these; None if there are none."""
    size = sum(layer.outputs * layer.inputs for layer in some)
    return sum(layer.zeros * layer.outputs * layer.inputs for layer in some) / size if size else None


def lines(found: Overview) -> Iterator[str]:
    """What the file says of itself, this processor, a table, totals."""
    yield from _about(found.content.about)
    yield _processor(found)
    if found.rows:
        yield from _table(found.rows)
    yield from _totals(found)


def _about(about: Mapping[str, Any] | None) -> Iterator[str]:
    """One line, and one for the labels. Entries that a file lacks, or that are of another type, are left out."""
    kind, score = (value if isinstance(value := (about or {}).get(key), dict) else {} for key in ("kind", "score"))
    said = {**kind, **score, **(about or {})}
    facts = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in said.items()}
    found = [
        form.format(**facts) for keys, form in FACTS if all(isinstance(facts.get(key), str | int | float) for key in keys)
    ]
    yield plain("; ".join(found)) or "The file does not say where it comes from: it is not from `export` of pruneonce 0.2.0."
    classes = kind.get("classes")
    if isinstance(classes, list) and classes:
        yield plain(f"{len(classes)} labels: {', '.join(map(str, classes[:12]))}{', ...' * (len(classes) > 12)}")


def _processor(found: Overview) -> str:
    if found.processor is None:
        return f"no library of the sparse kernels at {running.LIBRARY}. {running.BUILD}"
    threads = f"{found.threads} thread{'s' * (found.threads > 1)}" if found.threads else "a thread for each core"
    return f"processor: {found.processor}, {threads}; library: {running.LIBRARY}"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "matrix": lambda row: plain(row.layer.name),
    "size": lambda row: f"{row.layer.outputs}x{row.layer.inputs}",
    "zeros": lambda row: f"{row.layer.zeros:.1%}",
    "pattern": lambda row: row.layer.pattern,
    "bits": lambda row: str(row.layer.bits),
    "bytes": lambda row: f"{row.layer.bytes:,}",
    "words": lambda row: "" if row.words is None else f"{row.words:.1%}",
    "kernel": lambda row: row.kernel,
    "why": lambda row: row.why,
}


def _table(rows: Sequence[Row]) -> Iterator[str]:
    """Rows in columns: numbers to the right, words to the left. A column that is empty throughout is left out."""
    cells = {name: [cell(row) for row in rows] for name, cell in COLUMNS.items()}
    shown = {name: [name, *column] for name, column in cells.items() if any(column)}
    widths = [max(map(len, column)) for column in shown.values()]
    sides = [">" if name in RIGHT else "<" for name in shown]
    for row in zip(*shown.values(), strict=True):
        yield "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()


def _totals(found: Overview) -> Iterator[str]:
    total = as_json(found)["totals"]
    kernels = ", ".join(f"{count} {kernel}" for kernel, count in Counter(total["kernels"]).most_common())
    cycles = any("cycles" in row.why for row in found.rows)
    yield f"{len(found.rows)} matrices: {kernels or 'none'}" + "; cycles are those of all threads for one token" * cycles
    if found.content.operators:
        yield f"{found.content.operators} operators of the sparse kernels: `pruneonce accelerate` wrote this file"
    if embeddings := _embeddings(found):
        size, bits = (sum(each.outputs * each.inputs for each in embeddings), sorted({each.bits for each in embeddings}))
        stored = sum(each.bytes for each in embeddings)
        yield f"embeddings: {size:,} parameters of {' and '.join(map(str, bits))} bits, {stored:,} bytes"
    which = "the prunable" if any(row.layer.prunable for row in found.rows) else "these"
    sparsity = "" if total["sparsity"] is None else f", {total['sparsity']:.2%} zeros in {which} matrices"
    yield f"{total['parameters']:,} parameters{sparsity}"
    packed = "" if total["packed_bytes"] is None else f", {total['packed_bytes']:,} bytes packed"
    yield f"{total['bytes']:,} bytes{packed}"
