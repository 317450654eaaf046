"""The results of the study: its table as Markdown with verdicts and notes, as JSON, as CSV points and as an SVG drawing."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline import report
from study import drawing
from study.comparison import Row, Scored, Verdict, percent, spread

COLUMNS = ("learning rate", "encoder MB", "smaller", "task steps", "steps paid once")
NOTES = """\
Test scores in PyTorch: mean over {seeds} seeds ± half of the distance between the best and the worst. Learning rate: by
task, the best on validation, first seed. Rates were tried until the best had a lower and a higher one beside it. They are
of {rates}, so there was none for: {edge}. Every variant begins with
the head of the task's teacher and takes the same number of steps on the same batches, int8 a few more, and a row named
longer as many as it says. Learning from labels alone: {hard}; the others learn from the teacher too, by the
recipe of `finetune`. One_shot and gradual prune while the task is learned; once begins with what `sparsify` pruned. Each
prunes by the criterion of its row. Int8 rounds the prunable matrices and leaves the embedding tables in float, which the
pipeline's int8 file has in int8. Encoder MB: the prunable matrices as bitmap and values of 32 bits, in int8 of 8; smaller:
dense / this. Task steps are paid for every task, and for every rate tried; steps paid once are those of teacher preparation
and student pruning, whatever the number of tasks. A comparison holds, or is reversed, where two things are so: the means
differ by more than both spreads added, and 0 is outside the 95 % interval of the difference over the test rows (the same
rows for both, drawn {resamples} times). The seeds differ in the order of the batches. All begin with one language model.
Two equal variants with two seeds each lie apart in one comparison of three, so a spread alone says little. Nothing here
corrects for the number of comparisons.
"""


def markdown(title: str, table: Sequence[Row], verdicts: Sequence[Verdict], notes: str) -> str:
    """The table in the shape of the paper's Table 1, the verdicts on each claim, and the notes on the columns."""
    tasks = table[0].scores
    lines = report.table(("variant", "criterion", "sparsity", *tasks, *COLUMNS), [_cells(row, tasks) for row in table])
    return "\n".join([f"# {title}", "", *lines, "", *summary(verdicts), "", notes])


def _cells(row: Row, tasks: Iterable[str]) -> list[str]:
    scores = [score(row.scores[task]) if task in row.scores else "" for task in tasks]
    rates, steps = (" / ".join(f"{value:g}" for value in by_task.values()) for by_task in (row.learning_rates, row.steps))
    size = [f"{row.encoder_bytes / 1e6:.2f}", f"{row.times_smaller:.1f} x"]
    return [row.name, row.criterion, percent(row.sparsity), *scores, rates, *size, steps, str(row.once_steps)]


def score(seeds: Sequence[float]) -> str:
    """The mean of the seeds and their spread, in percent."""
    return f"{fmean(seeds):.2%} ± {100 * spread(seeds):.2f}"


def at_edge(table: Sequence[Row]) -> str:
    """The cells whose best rate has no lower or no higher one beside it. Their int8 and longer rows took the same rate."""
    cells = [row for row in table if row.bits == 32 and not row.longer]
    found = [f"{row.key} on {task}" for row in cells for task, inside in row.bracketed.items() if not inside]
    return ", ".join(found) or "none"


def summary(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """What `claims` says; last, whether the ordering holds as a whole."""
    if not verdicts:
        yield "- No two rows could be compared."
        return
    yield from claims(verdicts)
    says = {v.says for v in verdicts}
    if "reversed" in says:
        whole = "does not hold"
    elif says == {"holds"}:
        whole = "holds"
    else:
        whole = "holds where it can be told from the spread" if "holds" in says else "cannot be told from the spread"
    yield f"- The ordering as a whole {whole}: {_counts(verdicts)} of {len(verdicts)} comparisons."


def claims(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """For each claim a line of counts and its verdicts in points."""
    for claim in dict.fromkeys((v.better, v.worse) for v in verdicts):
        of_claim = [v for v in verdicts if (v.better, v.worse) == claim]
        yield f"- {claim[0]} >= {claim[1]}: {_counts(of_claim)} of {len(of_claim)} comparisons."
        for v in of_claim:
            rows = "" if v.low is None or v.high is None else f", test rows {100 * v.low:+.2f} to {100 * v.high:+.2f}"
            size = f", {v.smaller:.2f} x smaller" if v.smaller else ""
            yield f"  {v.task}, {v.where}: {100 * v.difference:+.2f}, spread {100 * v.noise:.2f}{rows}{size}: {v.says}."


def _counts(verdicts: Sequence[Verdict]) -> str:
    says = [v.says for v in verdicts]
    return ", ".join(f"{word} in {says.count(word)}" for word in ("holds", "within the spread", "reversed") if word in says)


def as_json(table: Sequence[Any], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Rows (data classes) and verdicts as JSON values; replicates are many, and stay with the cells."""
    rows = [{key: value for key, value in asdict(row).items() if key != "replicates"} for row in table]
    return {"rows": rows, "claims": [{**asdict(v), "says": v.says} for v in verdicts]}


def means(table: Sequence[Scored], task: str) -> dict[str, float]:
    """The key of a row -> its mean score on the task."""
    return {row.key: fmean(row.scores[task]) for row in table if task in row.scores}


def write_points(path: Path, table: Sequence[Row]) -> None:
    """Write score against encoder size as CSV, one line for each row and task, for DVC's scatter plot."""
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["task", "variant", "criterion", "sparsity", "encoder_megabytes", "score", "spread"])
        for row in table:
            for task, scores in row.scores.items():
                numbers = f"{row.encoder_bytes / 1e6:.3f}", f"{fmean(scores):.5f}", f"{spread(scores):.5f}"
                out.writerow([task, row.name, row.criterion, f"{row.sparsity:g}", *numbers])


def draw(path: Path, table: Sequence[Row]) -> None:
    """Draw the same points as SVG, but for those of more steps. The same table gives the same bytes."""
    panels: dict[str, dict[str, list[drawing.Point]]] = {task: {} for task in table[0].scores}
    for row in table:
        for task, scores in row.scores.items():
            if not row.longer:
                name = f"{row.name}, {row.criterion}" if row.sparsity else row.name
                panels[task].setdefault(name, []).append((row.encoder_bytes / 1e6, scores))
    drawing.draw(path, panels, xlabel="encoder, MB", axis=drawing.logarithmic)
