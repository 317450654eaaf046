"""What was reached, for people: a table, one HTML page with plots, and a model card for each task.

reads   scores, latencies, answers   one file a task                   evaluate
        exports    the parity of each file, one file a task            export
        histories   metrics over steps, one file a training   every stage that trains
writes  page       the table as Markdown
        table      the same as JSON
        sizes      score against size, for DVC's scatter plot
        html       everything, as one file that needs no network
        cards      a model card for each task, in the Hub's format

The lineage on the page is what dvc.lock says of the stages above, which are done when this one runs.
"""

import json

from pipeline import gates as limits
from pipeline.params.sections import Common, Gates, Report, Sparsify, TaskNames
from pipeline.report import markdown, write_sizes
from pipeline.reporting import card, curves, facts
from pipeline.reporting import page as html_page
from pipeline.stage import Dep, Metrics, Out, Record, main
from pipeline.tracking import lock


def run(
    scores: Dep,
    latencies: Dep,
    answers: Dep,
    exports: Dep,
    histories: Dep,
    page: Record,
    table: Record,
    sizes: Record,
    html: Out,
    cards: Out,
    *,
    tasks: TaskNames,
    common: Common,
    sparsify: Sparsify,
    gates: Gates,
    report: Report,
) -> Metrics:
    stages = lock.current()
    folders = (scores, latencies, answers, exports)
    found = []
    for task in tasks.names:
        files = [json.loads((folder / f"{task}.json").read_text(encoding="utf-8")) for folder in folders]
        measured = limits.Measured(task, *files)
        found.append(facts.task_facts(measured, gates.changed(tasks.gates.get(task, {})), stages))
    known = facts.gather(report.title, found, stages, common=common, sparsify=sparsify)
    drawn = list(curves.read_all(histories, tasks.names))

    rows = [row for task in found for row in task.rows]
    page.write_text(markdown(report.title, rows), encoding="utf-8")
    table.write_text(json.dumps(rows, indent=2) + "\n")
    write_sizes(sizes, rows)
    html.write_text(html_page.render(known, drawn), encoding="utf-8")
    cards.mkdir(parents=True, exist_ok=True)
    for task_facts in found:
        (cards / f"{task_facts.name}.md").write_text(card.render(known, task_facts), encoding="utf-8")
    return {task.name: {row["variant"]: row["score"] for row in task.rows} for task in found}


if __name__ == "__main__":
    main(run)
