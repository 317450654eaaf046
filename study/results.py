"""The results of the study: its table as Markdown with verdicts and notes, as JSON, as CSV points and as an SVG drawing."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline import report
from study import drawing
from study.comparison import Row, Scored, Verdict, spread

COLUMNS = ("learning rate", "encoder MB", "smaller", "task steps", "steps paid once")
NOTES = """\
Test scores in PyTorch: mean over {seeds} seeds ± half of the distance between the best and the worst. Learning rate: by
task, the best on validation of {rates}, first seed. Every variant begins with the head of the
task's teacher and takes the same number of steps on the same batches, int8 a few more. Learning from labels alone:
{hard}; the others learn from the teacher too, by the recipe of `finetune`. one_shot and
gradual prune by magnitude while the task is learned; once begins with what `sparsify` pruned (criterion: {criterion}).
Int8 rounds the prunable matrices and leaves the embedding tables in float, which the pipeline's int8 file has in int8.
Encoder MB: the prunable matrices as bitmap and values of 32 bits, in int8 of 8; smaller: dense / this. Task steps are paid
for every task, and for every rate tried; steps paid once are those of teacher preparation and student pruning, whatever
the number of tasks. A comparison holds, or is reversed, where the means differ by more than both spreads added.
"""


def markdown(title: str, table: Sequence[Row], verdicts: Sequence[Verdict], notes: str) -> str:
    """The table in the shape of the paper's Table 1, the verdicts on each claim, and the notes on the columns."""
    lines = report.table(("variant", "sparsity", *table[0].scores, *COLUMNS), [_cells(row) for row in table])
    return "\n".join([f"# {title}", "", *lines, "", *summary(verdicts), "", notes])


def _cells(row: Row) -> list[str]:
    scores = [f"{fmean(scores):.2%} ± {100 * spread(scores):.2f}" for scores in row.scores.values()]
    rates, steps = (" / ".join(f"{value:g}" for value in by_task.values()) for by_task in (row.learning_rates, row.steps))
    size = [f"{row.encoder_bytes / 1e6:.2f}", f"{row.times_smaller:.1f} x"]
    return [row.variant, f"{row.sparsity:.0%}", *scores, rates, *size, steps, str(row.once_steps)]


def summary(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """What `claims` says; last, whether the ordering holds as a whole."""
    yield from claims(verdicts)
    says = {v.says for v in verdicts}
    if "reversed" in says:
        whole = "does not hold"
    else:
        whole = "holds" if "holds" in says else "cannot be told from the spread of the seeds"
    yield f"- The ordering as a whole {whole}: {_counts(verdicts)} of {len(verdicts)} comparisons."


def claims(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """For each claim a line of counts and its verdicts in points."""
    for claim in dict.fromkeys((v.better, v.worse) for v in verdicts):
        of_claim = [v for v in verdicts if (v.better, v.worse) == claim]
        yield f"- {claim[0]} >= {claim[1]}: {_counts(of_claim)} of {len(of_claim)} comparisons."
        for v in of_claim:
            yield f"  {v.task} at {v.sparsity:.0%}: {100 * v.difference:+.2f}, spread {100 * v.noise:.2f}: {v.says}."


def _counts(verdicts: Sequence[Verdict]) -> str:
    says = [v.says for v in verdicts]
    return ", ".join(f"{word} in {says.count(word)}" for word in ("holds", "within the spread", "reversed") if word in says)


def as_json(table: Sequence[Any], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Rows (data classes) and verdicts as JSON values."""
    return {"rows": [asdict(row) for row in table], "claims": [{**asdict(v), "says": v.says} for v in verdicts]}


def means(table: Sequence[Scored], task: str) -> dict[str, float]:
    """ "variant-sparsity" -> mean score on the task."""
    return {f"{row.variant}-{row.sparsity:g}": fmean(row.scores[task]) for row in table}


def write_points(path: Path, table: Sequence[Row]) -> None:
    """Write score against encoder size as CSV, one line for each row and task, for DVC's scatter plot."""
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["task", "variant", "sparsity", "encoder_megabytes", "score", "spread"])
        for row in table:
            for task, scores in row.scores.items():
                numbers = f"{row.encoder_bytes / 1e6:.3f}", f"{fmean(scores):.5f}", f"{spread(scores):.5f}"
                out.writerow([task, row.variant, f"{row.sparsity:g}", *numbers])


def draw(path: Path, table: Sequence[Row]) -> None:
    """Draw the same points as SVG. The same table gives the same bytes."""

    def lines(task: str) -> drawing.Lines:
        variants = dict.fromkeys(row.variant for row in table)
        return {v: [(row.encoder_bytes / 1e6, row.scores[task]) for row in table if row.variant == v] for v in variants}

    panels = {task: lines(task) for task in table[0].scores}
    drawing.draw(path, panels, xlabel="encoder, MB", axis=drawing.logarithmic)
