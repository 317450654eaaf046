"""The table of the study: its cells in the shape of the paper's Table 1, with a verdict on each claim.

reads   cells    metrics of every cell                          study_dense, study_late, study_once
writes  page     the table as Markdown
        table    the same as JSON
        points   score against encoder size, for DVC's scatter plot
        picture  the same points as SVG
source  Zafrir et al. 2021, arXiv:2111.05754, table 1
"""

import json
from typing import Any

from pipeline.params.sections import PrepareTeacher, Sparsify
from pipeline.params.study import Study
from pipeline.stage import Dep, Metrics, Record, main
from study import comparison, results


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
) -> Metrics:
    def read(variant: str, criterion: str, sparsity: float) -> dict[str, Any]:
        files = {task: cells / f"{task}-{variant}-{criterion}-{sparsity:g}.json" for task in study.tasks}
        return {task: json.loads(file.read_text()) for task, file in files.items()}

    once_steps = {
        name: prepare_teacher.steps + (sparsify.steps if variant.pruning == "once" else 0)
        for name, variant in study.variants.items()
    }
    rows = comparison.rows({key: read(*key) for key in study.cells()}, once_steps=once_steps)
    verdicts = list(comparison.verdicts(rows, study.claims))
    notes = results.NOTES.format(
        seeds=len(study.recipe.seeds),
        rates=", ".join(f"{rate:g}" for rate in study.recipe.learning_rates),
        edge=results.at_edge(rows),
        resamples=study.recipe.resamples,
        hard=" and ".join(name for name, variant in study.variants.items() if not variant.soft_weight) or "none",
    )
    page.write_text(results.markdown(study.title, rows, verdicts, notes), encoding="utf-8")
    table.write_text(json.dumps(results.as_json(rows, verdicts), indent=2) + "\n")
    results.write_points(points, rows)
    results.draw(picture, rows)
    return {task: results.means(rows, task) for task in study.tasks}


if __name__ == "__main__":
    main(run)
