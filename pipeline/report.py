"""The table of the `report` stage: one row for each task and variant, as Markdown and as CSV."""

import csv
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

VARIANTS = {"dense": "dense", "sparse": "sparse", "int8": "int8", "int8_sparse": "int8, sparse kernels"}  # -> in the table

Row = dict[str, Any]


def task_rows(task: str, scores: Mapping[str, Any], latencies: Mapping[str, Any]) -> list[Row]:
    """One row for each variant that was evaluated; changes and ratios are to the dense one."""
    dense, dense_ms = scores["dense"], latencies["dense"]["median_ms"]
    return [
        {
            "task": task,
            "variant": variant,
            **{k: score[k] for k in ("metric", "score", "score_low", "score_high", "metrics", "rows", "sparsity")},
            "score_change": score["score"] - dense["score"],
            "more_tests": {name: test["score"] for name, test in score["more_tests"].items()},
            **{k: score[k] for k in ("file_bytes", "packed_bytes")},
            "times_smaller": dense["file_bytes"] / score["packed_bytes"],
            **{k: latency[k] for k in ("median_ms", "p95_ms", "resident_bytes", "tokens", "threads")},
            "times_faster": dense_ms / latency["median_ms"],
        }
        for variant, score, latency in ((name, scores[name], latencies[name]) for name in VARIANTS if name in scores)
    ]


def cells(row: Row) -> dict[str, str]:
    """A row of the Markdown table: column -> text."""
    return {
        "task": row["task"],
        "variant": VARIANTS[row["variant"]],
        "metric": row["metric"],
        "score": " / ".join(f"{score:.2%}" for score in (row["score"], *row["more_tests"].values())),
        "95 % interval": f"{row['score_low']:.1%} - {row['score_high']:.1%}",
        "sparsity": f"{row['sparsity']:.2%}",
        "MB": f"{row['file_bytes'] / 1e6:.1f}",
        "packed MB": f"{row['packed_bytes'] / 1e6:.1f}",
        "smaller": f"{row['times_smaller']:.1f} x",
        "ms": f"{row['median_ms']:.1f}",
        "p95 ms": f"{row['p95_ms']:.1f}",
        "MB in memory": f"{row['resident_bytes'] / 1e6:.0f}",
        "speed": f"{row['times_faster']:.2f} x",
    }


def markdown(title: str, rows: Sequence[Row]) -> str:
    """The page: the table, what its columns mean, and every metric of every task."""
    first = rows[0]
    sparse = "- int8, sparse kernels: the int8 file, with this project's kernels, which pass over zeros."
    lines = [f"# {title}", "", *table(cells(first), [cells(row).values() for row in rows])]
    lines += [
        "",
        *([sparse] if any(row["variant"] == "int8_sparse" for row in rows) else []),
        "- score: on the whole test split, in ONNX Runtime; after a /, on further test splits. A correlation of 1 is 100 %.",
        "- 95 % interval: Wilson's for an accuracy, a bootstrap interval for any other metric.",
        "- sparsity: the share of zeros in the prunable matrices, counted in the file.",
        "- MB: size of the ONNX file. packed MB: its size after `pruneonce pack`.",
        "- smaller: bytes of the dense ONNX file / bytes of this model's packed file.",
        "- ms, p95 ms: median and 95th percentile of a call at batch 1, "
        f"{first['tokens']} tokens, {first['threads']} threads.",
        "- MB in memory: what loading the model and one such call add to the resident memory of a process.",
        "- speed: median of the dense model / median of this model. The variants of a task are measured in turns, but the",
        "  tasks at different times. So compare milliseconds within a task only.",
        "",
        *every_metric(rows),
    ]
    return "\n".join(lines)


def every_metric(rows: Sequence[Row]) -> list[str]:
    """All metrics on the test split, as lines of a table, for tasks with more than one metric."""
    found = [
        {
            "task": row["task"],
            "variant": VARIANTS[row["variant"]],
            "every metric": ", ".join(f"{name} {value:.2%}" for name, value in row["metrics"].items()),
        }
        for row in rows
        if len(row["metrics"]) > 1
    ]
    return [*table(found[0], [row.values() for row in found]), ""] if found else []


def table(header: Collection[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """The lines of a Markdown table."""
    # Not tabulate: it pads every cell to the width of its column, and the page in git has no padding.
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return [lines[0], f"|{'---|' * len(header)}", *lines[1:]]


def write_sizes(path: Path, rows: Sequence[Row]) -> None:
    """Score against size as CSV, for a scatter plot."""
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["task", "variant", "packed_megabytes", "score"])
        out.writerows([r["task"], r["variant"], f"{r['packed_bytes'] / 1e6:.3f}", f"{r['score']:.5f}"] for r in rows)
