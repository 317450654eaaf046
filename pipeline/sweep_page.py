"""What a sweep shows: a row for each cell, task and variant, as Markdown, as CSV and as a plot."""

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vl_convert

from pipeline.report import VARIANTS, Row, table

MEASURES = {"score": "score, %", "packed_megabytes": "packed MB", "median_ms": "ms a call"}
LETTERS = {"packed_bytes": ("packed_megabytes", 1e-6), "median_ms": ("median_ms", 1.0), "score": ("score", 100.0)}


def rows(swept: dict[str, str], report: Sequence[Row]) -> list[Row]:
    """The rows of a cell. swept: its values. report: of its report.json."""
    return [
        {
            **swept,
            "task": row["task"],
            "variant": row["variant"],
            **{name: row[key] * factor for key, (name, factor) in LETTERS.items()},
            "sparsity": row["sparsity"],
        }
        for row in report
    ]


def markdown(title: str, found: Sequence[Row], keys: Sequence[str], notes: Sequence[str]) -> str:
    """The page. notes: lines below the table, such as the cells that failed."""
    lines = [f"# {title}", ""]
    if found:
        header = [*keys, "task", "variant", "score", "sparsity", "packed MB", "ms"]
        lines += [*table(header, ([*(row[key] for key in keys), *_shown(row)] for row in found)), ""]
        lines += ["Each cell ran the whole pipeline. Compare milliseconds within a cell only: cells ran at different times."]
    return "\n".join([*lines, "", *notes]).rstrip("\n") + "\n"


def _shown(row: Row) -> list[str]:
    return [
        row["task"],
        VARIANTS[row["variant"]],
        f"{row['score']:.2f}%",
        f"{row['sparsity']:.2%}",
        f"{row['packed_megabytes']:.3f}",
        f"{row['median_ms']:.2f}",
    ]


def write_csv(path: Path, found: Sequence[Row], keys: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, [*keys, "task", "variant", "sparsity", *MEASURES], lineterminator="\n")
        out.writeheader()
        out.writerows(found)


def draw(path: Path, found: Sequence[Row], keys: Sequence[str]) -> None:
    """Score, size and latency of each task against the first parameter, as SVG; a line for each variant and other values."""
    first, *others = keys
    numeric = all(_number(row[first]) is not None for row in found)
    data = [
        {
            "x": _number(row[first]) if numeric else row[first],
            "task": row["task"],
            "variant": VARIANTS[row["variant"]],
            "others": ", ".join(f"{key.rpartition('.')[2]} {row[key]}" for key in others) or "all",
            **{key: row[key] for key in MEASURES},
        }
        for row in found
    ]
    tasks = list(dict.fromkeys(row["task"] for row in found))
    panels = [_panel(task, measure, first, numeric, bool(others)) for task, measure in itertools.product(tasks, MEASURES)]
    chart = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": data},
        "columns": len(MEASURES),
        "concat": panels,
        "config": {"background": "white"},
    }
    path.write_text(vl_convert.vegalite_to_svg(chart), encoding="utf-8")


def _panel(task: str, measure: str, first: str, numeric: bool, others: bool) -> dict[str, Any]:
    kind = {"type": "quantitative", "scale": {"zero": False}} if numeric else {"type": "nominal", "sort": None}
    dash = {"strokeDash": {"field": "others", "type": "nominal", "title": None}} if others else {}
    return {
        "title": task,
        "width": 220,
        "height": 180,
        "transform": [{"filter": {"field": "task", "equal": task}}],
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {"field": "x", "title": first, **kind},
            "y": {"field": measure, "type": "quantitative", "title": MEASURES[measure], "scale": {"zero": False}},
            "color": {"field": "variant", "type": "nominal", "title": None},
            "detail": {"field": "others"},
            **dash,
        },
    }


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
