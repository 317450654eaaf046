"""Several ways to a task model against each other: the table of their scores, and what it says.

A cell is one variant at one sparsity on one task; its scores are of several seeds.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Cell = Mapping[str, Any]  # what a cell measured: test, learning_rate, steps, encoder_bytes, and int8 if it has one

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


@dataclass(frozen=True)
class Row:
    """A line of the table. By task: scores (one a seed, in [0, 1]), learning rates, steps of one model.

    once_steps: of pre-training, whatever the tasks. encoder_bytes: of the prunable matrices. times_smaller: than dense.
    """

    variant: str
    sparsity: float
    scores: dict[str, list[float]]
    learning_rates: dict[str, float]
    steps: dict[str, int]
    once_steps: int
    encoder_bytes: float
    times_smaller: float


def mean(scores: Sequence[float]) -> float:
    """The mean over the seeds."""
    return sum(scores) / len(scores)


def spread(scores: Sequence[float]) -> float:
    """Half of the distance between the best and the worst seed."""
    return (max(scores) - min(scores)) / 2


def rows(found: Mapping[tuple[str, float], Mapping[str, Cell]], *, once_steps: Mapping[str, int]) -> list[Row]:
    """One line for (variant, sparsity), and one more where its cells have an int8 model.

    found: (variant, sparsity) -> task -> cell; one of them is dense (sparsity 0). once_steps: by variant.
    """
    dense = _encoder_bytes(next(cells for (_, sparsity), cells in found.items() if sparsity == 0))
    made = []
    for (variant, sparsity), cells in found.items():
        kinds = {variant: cells}
        if all("int8" in cell for cell in cells.values()):
            kinds[f"{variant}-int8"] = {task: {**cell, **cell["int8"]} for task, cell in cells.items()}
        for name, by_task in kinds.items():
            made.append(
                Row(
                    name,
                    sparsity,
                    {task: list(cell["test"].values()) for task, cell in by_task.items()},
                    {task: cell["learning_rate"] for task, cell in by_task.items()},
                    {task: cell["steps"] for task, cell in by_task.items()},
                    once_steps[variant],
                    _encoder_bytes(by_task),
                    dense / _encoder_bytes(by_task),
                )
            )
    return made


def _encoder_bytes(cells: Mapping[str, Cell]) -> float:
    """The same for every task, but for a weight that is zero by chance."""
    return mean([cell["encoder_bytes"] for cell in cells.values()])


@dataclass(frozen=True)
class Verdict:
    """A claim, that `better` scores no lower than `worse`, on one task at one sparsity.

    difference: of the means. noise: the spreads of both, added: the difference at which their ranges just touch.
    """

    better: str
    worse: str
    task: str
    sparsity: float
    difference: float
    noise: float

    @property
    def says(self) -> str:
        """Whether the claim holds, is reversed, or cannot be told from the seeds."""
        if abs(self.difference) <= self.noise:
            return "within the spread"
        return "holds" if self.difference > 0 else "reversed"


def verdicts(table: Sequence[Row], claims: Sequence[Sequence[str]]) -> Iterator[Verdict]:
    """Every claim on every task, at every sparsity that both of its variants have."""
    found = {(row.variant, row.sparsity): row.scores for row in table}
    for better, worse in claims:
        for sparsity in dict.fromkeys(row.sparsity for row in table):
            ours, theirs = found.get((better, sparsity), {}), found.get((worse, sparsity), {})
            for task in ours if theirs else ():
                noise = spread(ours[task]) + spread(theirs[task])
                yield Verdict(better, worse, task, sparsity, mean(ours[task]) - mean(theirs[task]), noise)


def summary(judged: Sequence[Verdict]) -> Iterator[str]:
    """A line a claim, in points: where it holds; a last one: whether the ordering does as a whole."""
    for better, worse in dict.fromkeys((v.better, v.worse) for v in judged):
        mine = [v for v in judged if (v.better, v.worse) == (better, worse)]
        yield f"- {better} >= {worse}: {_counts(mine)} of {len(mine)} comparisons."
        yield from (
            f"  {v.task} at {v.sparsity:.0%}: {100 * v.difference:+.2f}, spread {100 * v.noise:.2f}: {v.says}." for v in mine
        )
    says = [v.says for v in judged]
    if "reversed" in says:
        whole = "does not hold"
    else:
        whole = "holds" if "holds" in says else "cannot be told from the spread of the seeds"
    yield f"- The ordering as a whole {whole}: {_counts(judged)} of {len(judged)} comparisons."


def _counts(judged: Sequence[Verdict]) -> str:
    says = [v.says for v in judged]
    return ", ".join(f"{what} in {says.count(what)}" for what in ("holds", "within the spread", "reversed") if what in says)


HEADER = ("learning rate", "encoder MB", "smaller", "task steps", "steps paid once")


def markdown(title: str, table: Sequence[Row], judged: Sequence[Verdict], notes: str) -> str:
    """The table in the shape of the paper's Table 1, what its numbers say about each claim, what its columns mean."""
    tasks = list(table[0].scores)
    header = ["variant", "sparsity", *tasks, *HEADER]
    lines = [f"# {title}", "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for row in table:
        scores = [f"{mean(row.scores[task]):.2%} ± {100 * spread(row.scores[task]):.2f}" for task in tasks]
        rates, steps = (" / ".join(f"{by[task]:g}" for task in tasks) for by in (row.learning_rates, row.steps))
        size = [f"{row.encoder_bytes / 1e6:.2f}", f"{row.times_smaller:.1f} x"]
        cells = [row.variant, f"{row.sparsity:.0%}", *scores, rates, *size, steps, str(row.once_steps)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *summary(judged), "", notes])


def as_json(table: Sequence[Row], judged: Sequence[Verdict]) -> dict[str, Any]:
    """Everything the page says, as numbers."""
    return {"rows": [asdict(row) for row in table], "claims": [{**asdict(v), "says": v.says} for v in judged]}


def means(table: Sequence[Row], task: str) -> dict[str, float]:
    """Line of the table -> mean score on the task."""
    return {f"{row.variant}-{row.sparsity:g}": mean(row.scores[task]) for row in table}


def write_points(path: Path, table: Sequence[Row]) -> None:
    """Score against encoder size as CSV, for a scatter plot: one row a line of the table and task."""
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["task", "variant", "sparsity", "encoder_megabytes", "score", "spread"])
        for row in table:
            for task, scores in row.scores.items():
                numbers = f"{row.encoder_bytes / 1e6:.3f}", f"{mean(scores):.5f}", f"{spread(scores):.5f}"
                out.writerow([task, row.variant, f"{row.sparsity:g}", *numbers])


def draw(path: Path, table: Sequence[Row]) -> None:
    """The same points as an SVG, a panel a task, a line a variant; the same bytes for the same points."""
    import matplotlib as mpl  # takes a second, and only the study's table draws
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    tasks = list(table[0].scores)
    with mpl.rc_context({"svg.hashsalt": "pruneonce", "svg.fonttype": "none"}):
        figure = Figure(figsize=(4.5 * len(tasks), 4.2), layout="constrained")
        panels = figure.subplots(1, len(tasks), squeeze=False)[0]
        for panel, task in zip(panels, tasks, strict=True):
            for variant in dict.fromkeys(row.variant for row in table):
                mine = [row for row in table if row.variant == variant]
                panel.errorbar(
                    [row.encoder_bytes / 1e6 for row in mine],
                    [100 * mean(row.scores[task]) for row in mine],
                    yerr=[100 * spread(row.scores[task]) for row in mine],
                    fmt="o-",
                    linewidth=1,
                    markersize=4,
                    capsize=3,
                    label=variant,
                )
            panel.set(title=task, xlabel="encoder, MB", ylabel="test score, %", xscale="log")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.grid(alpha=0.3)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})
