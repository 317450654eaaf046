"""The closing table: one row a task and variant."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

VARIANTS = ("dense", "sparse", "int8")

Row = dict[str, Any]


def rows(task: str, scores: Mapping[str, Any], latencies: Mapping[str, Any]) -> list[Row]:
    """One row a variant; differences and ratios are to the dense one."""
    base, base_ms = scores["dense"], latencies["dense"]["median_ms"]
    made = []
    for variant in VARIANTS:
        score, latency = scores[variant], latencies[variant]
        made.append(
            {
                "task": task,
                "variant": variant,
                **{k: score[k] for k in ("metric", "score", "score_low", "score_high", "metrics", "rows", "sparsity")},
                "score_change": score["score"] - base["score"],
                "more_tests": {name: found["score"] for name, found in score["more_tests"].items()},
                **{k: score[k] for k in ("file_bytes", "packed_bytes")},
                "times_smaller": base["file_bytes"] / score["packed_bytes"],
                **{k: latency[k] for k in ("median_ms", "p95_ms", "tokens", "threads")},
                "times_faster": base_ms / latency["median_ms"],
            }
        )
    return made


HEADER = (
    *("task", "variant", "metric", "score", "95 % interval", "sparsity"),
    *("MB", "packed MB", "smaller", "ms", "p95 ms", "speed"),
)


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, in HEADER's order."""
    return (
        row["task"],
        row["variant"],
        row["metric"],
        " / ".join(f"{score:.2%}" for score in (row["score"], *row["more_tests"].values())),
        f"{row['score_low']:.1%} - {row['score_high']:.1%}",
        f"{row['sparsity']:.2%}",
        f"{row['file_bytes'] / 1e6:.1f}",
        f"{row['packed_bytes'] / 1e6:.1f}",
        f"{row['times_smaller']:.1f} x",
        f"{row['median_ms']:.1f}",
        f"{row['p95_ms']:.1f}",
        f"{row['times_faster']:.2f} x",
    )


def markdown(title: str, table: Sequence[Row]) -> str:
    """The table with what its columns mean, and every metric of every task."""
    first = table[0]
    lines = [f"# {title}", "", f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}"]
    lines += [f"| {' | '.join(cells(row))} |" for row in table]
    lines += [
        "",
        "Measured through ONNX Runtime on the whole test split, and after a / on further ones; the interval is Wilson's for",
        "an accuracy, a bootstrap's for another metric. A correlation of 1 is 100 %. Sparsity: zeros in the prunable",
        "matrices, counted in the file. MB: the file; packed MB: after `pruneonce pack`; smaller: bytes of the dense file",
        "/ of the packed one. ms, p95 ms: median and 95th percentile of a call at batch 1, "
        f"{first['tokens']} tokens, {first['threads']} threads.",
        "Speed: dense median / this median. The variants of a task are measured in turns, tasks at different moments: times",
        "may be compared within a task, as speed does, not between tasks.",
        "",
        *every_metric(table),
    ]
    return "\n".join(lines)


def every_metric(table: Sequence[Row]) -> list[str]:
    """What else the kinds of task measure, on the test split, as lines of a table; none where there is but one metric."""
    more = [row for row in table if len(row["metrics"]) > 1]
    if not more:
        return []
    found = [", ".join(f"{name} {value:.2%}" for name, value in row["metrics"].items()) for row in more]
    lines = [f"| {row['task']} | {row['variant']} | {metrics} |" for row, metrics in zip(more, found, strict=True)]
    return ["| task | variant | every metric |", "|---|---|---|", *lines, ""]


def write_sizes(path: Path, table: Sequence[Row]) -> None:
    """Score against size as CSV, for a scatter plot."""
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["task", "variant", "packed_megabytes", "score"])
        out.writerows([r["task"], r["variant"], f"{r['packed_bytes'] / 1e6:.3f}", f"{r['score']:.5f}"] for r in table)
