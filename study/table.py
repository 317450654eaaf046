"""What pruning once buys: the study's cells as one table in the shape of the paper's Table 1, and what its numbers say.

reads   cells    one metrics file a cell                        study_dense, study_late, study_once
writes  page     the table as Markdown
        table    the same as JSON
        points   score against encoder size, for DVC's scatter plot
        picture  the same as a drawing
source  Zafrir et al. 2021, arXiv:2111.05754, table 1
"""

import json
from itertools import product
from typing import Any

from pipeline.params.sections import PrepareTeacher, Sparsify
from pipeline.params.study import Study
from pipeline.stage import Dep, Log, Metrics, Record, main
from study import comparison


def run(
    cells: Dep,
    page: Record,
    table: Record,
    points: Record,
    picture: Record,
    *,
    prepare_teacher: PrepareTeacher,
    sparsify: Sparsify,
    study: Study,
    log: Log,
) -> Metrics:
    def read(variant: str, sparsity: float) -> dict[str, Any]:
        name = f"{variant}-{sparsity:g}" if sparsity else variant
        return {task: json.loads((cells / f"{task}-{name}.json").read_text()) for task in study.tasks}

    pruned = {name: row for name, row in study.variants.items() if row.pruning != "none"}
    dense = [(name, 0.0) for name in study.variants if name not in pruned]
    found = {key: read(*key) for key in [*dense, *((name, s) for s, name in product(study.sparsities, pruned))]}
    once = {
        name: prepare_teacher.steps + (sparsify.steps if row.pruning == "once" else 0)
        for name, row in study.variants.items()
    }
    rows = comparison.rows(found, once_steps=once)
    judged = list(comparison.verdicts(rows, study.claims))
    notes = comparison.NOTES.format(
        seeds=len(study.recipe.seeds),
        rates=", ".join(f"{rate:g}" for rate in study.recipe.learning_rates),
        hard=" and ".join(name for name, row in study.variants.items() if not row.soft_weight) or "none",
        criterion=sparsify.criterion,
    )
    page.write_text(comparison.markdown(study.title, rows, judged, notes))
    table.write_text(json.dumps(comparison.as_json(rows, judged), indent=2) + "\n")
    comparison.write_points(points, rows)
    comparison.draw(picture, rows)
    return {task: comparison.means(rows, task) for task in study.tasks}


if __name__ == "__main__":
    main(run)
