"""The table of the study of patterns: scores and latencies of every cell, with a verdict on what each pattern costs.

reads   cells      scores of every cell                     patterns_cell, patterns_more_cell
        exports    what was measured of every int8 file     patterns_export, patterns_more_export
        latencies  of every int8 file by every execution    patterns_latency
writes  page       the table as Markdown
        table      the same as JSON
        points     score against latency, for DVC's scatter plot
        picture    the same points as SVG
"""

import json
from itertools import product
from pathlib import Path
from typing import Any

from pipeline.params.patterns import Patterns, cell
from pipeline.stage import Dep, Metrics, Record, main
from study import comparison, results
from study.patterns import page as pages


def run(
    cells: Dep,
    exports: Dep,
    latencies: Dep,
    page: Record,
    table: Record,
    points: Record,
    picture: Record,
    *,
    patterns: Patterns,
) -> Metrics:
    measured = _read(latencies)
    settings = measured.pop("settings")

    def row(pattern: str, sparsity: float) -> pages.Row:
        names = {task: cell(task, pattern, sparsity) for task in patterns.all_tasks}
        scores = {task: _read(cells / f"{name}.json") for task, name in names.items()}
        files = {task: _read(exports / f"{name}.json") for task, name in names.items()}
        return pages.Row(
            variant=pattern,
            sparsity=sparsity,
            scores={task: list(found["int8"].values()) for task, found in scores.items()},
            float_scores={task: list(found["sparse"].values()) for task, found in scores.items()},
            onnx_scores={task: found["score"] for task, found in files.items()},
            packed_bytes={task: found["packed_bytes"] for task, found in files.items()},
            latencies_ms={
                execution: {task: calls[name]["median_ms"] for task, name in names.items()}
                for execution, calls in measured.items()
            },
        )

    rows = [row(*key) for key in product(patterns.patterns, patterns.sparsities)]
    first, *others = patterns.patterns
    claims = [(first, other) for other in others]
    verdicts = list(
        comparison.compare(rows, claims, what=lambda row: row.variant, where=lambda row: comparison.percent(row.sparsity))
    )
    page.write_text(
        pages.markdown(patterns.title, rows, verdicts, pages.NOTES.format(seeds=len(patterns.seeds), **settings)),
        encoding="utf-8",
    )
    table.write_text(json.dumps(results.as_json(rows, verdicts), indent=2) + "\n")
    pages.write_points(points, rows)
    pages.draw(picture, rows)
    return {task: results.means(rows, task) for task in patterns.all_tasks}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


if __name__ == "__main__":
    main(run)
