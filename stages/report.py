"""One table over tasks and variants: score, sparsity, size, latency, as Markdown and as JSON.

reads   scores     one metrics file a task                     evaluate
        latencies  one file a task                             evaluate
writes  page       the table as Markdown
        table      the same as JSON
        sizes      score against size, for DVC's scatter plot
"""

import json

from pipeline.params.sections import Report, TaskNames
from pipeline.report import markdown, task_rows, write_sizes
from pipeline.stage import Dep, Metrics, Record, main


def run(
    scores: Dep,
    latencies: Dep,
    page: Record,
    table: Record,
    sizes: Record,
    *,
    tasks: TaskNames,
    report: Report,
) -> Metrics:
    rows = []
    for task in tasks.names:
        score, latency = (json.loads((folder / f"{task}.json").read_text()) for folder in (scores, latencies))
        rows += task_rows(task, score, latency)
    page.write_text(markdown(report.title, rows))
    table.write_text(json.dumps(rows, indent=2) + "\n")
    write_sizes(sizes, rows)
    return {task: {row["variant"]: row["score"] for row in rows if row["task"] == task} for task in tasks.names}


if __name__ == "__main__":
    main(run)
