"""What a run of the battery found, kept beside those of other seeds and recipes: `python -m study.battery.results default`.

Run it after `make run PROFILE=battery`, or after a part of it. It reads data/, params.yaml and dvc.lock. It writes
`results/<recipe>-<seed>.json`, and makes the table and the plot of all such files anew. Retention is a score / the dense
score, in percent. Its 95 % interval is of the test rows: both scores are of the same rows, drawn again and again.
With several seeds, an interval holds those of all seeds.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import gates
from pipeline.hashing import file_md5
from pipeline.params.document import Params, load
from pipeline.tracking import committed, lock
from pruneonce.errors import DataError
from pruneonce.terminal import one_line_errors

FOLDER = Path("study/battery")
VARIANTS = ("sparse", "int8")


@dataclass(frozen=True)
class Kept:
    """The score of a model, and how much of the dense score that is, in percent, with its 95 % interval.

    None of the latter three where the dense score, or a draw of it, is not above 0: then a share of it says nothing.
    """

    score: float
    percent: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Result:
    """One task of one run. tokens: that the language model read while it was pruned."""

    recipe: str
    seed: int
    tokens: int
    sparsity: float
    task: str
    kind: str
    metric: str
    rows: int
    dense: float
    sparse: Kept
    int8: Kept


def kept(scores: Mapping[str, Any], answers: Mapping[str, Any], variant: str) -> Kept:
    """Of one variant. scores, answers: as `evaluate` writes them."""
    new, dense = (np.array(answers["variants"][name]["replicates"]) for name in (variant, "dense"))
    score, whole = scores[variant]["score"], scores["dense"]["score"]
    if min(whole, *dense) <= 0:
        return Kept(score, None, None, None)
    low, high = np.percentile(100 * new / dense, (2.5, 97.5))
    return Kept(score, 100 * score / whole, float(low), float(high))


def finished(p: Params) -> list[str]:
    """The tasks that were evaluated with these parameters and this code, by dvc.lock. Raises DataError if there is none."""
    stages = lock.current()

    def missing(task: str) -> str:
        """Why there is no result of the task, as the end of a sentence; empty if there is one."""
        stage = stages.get(f"evaluate@{task}")
        read = [path for name, path in gates.files(task).items() if name != "export"]
        if stage is None or not all(path.exists() and stage.outs.get(str(path)) == file_md5(path) for path in read):
            return f"evaluate@{task} is not finished. Run again: make run PROFILE=battery"
        return next(committed.stale(stages, task), "")

    missed = {task: missing(task) for task in p.tasks}
    if all(missed.values()):
        raise DataError(f"expected results of {', '.join(missed)}, found none: {next(iter(missed.values()))}")
    return [task for task, why in missed.items() if not why]


def read(recipe: str) -> list[Result]:
    """What the last run found, by task; of a run that did not end, the tasks that it finished."""
    p = load()
    tokens = p.sparsify.steps * p.sparsify.batch_size * p.prepare_corpus.block_tokens
    found = []
    for task in finished(p):
        measured = gates.read(task)
        scores = measured.scores
        each = {name: kept(scores, measured.answers, name) for name in VARIANTS}
        settings: Any = p.section("prepare_task", task)
        name, rows, dense = scores["dense"]["metric"], scores["dense"]["rows"], scores["dense"]["score"]
        found.append(
            Result(recipe, p.common.seed, tokens, p.sparsify.sparsity, task, settings.kind, name, rows, dense, **each)
        )
    return found


def saved() -> list[Result]:
    """All results that were kept, by file."""
    rows = [row for path in sorted((FOLDER / "results").glob("*.json")) for row in json.loads(path.read_text())]
    return [Result(**{**row, **{name: Kept(**row[name]) for name in VARIANTS}}) for row in rows]


def table(found: Sequence[Result]) -> str:
    """A row for each task of each recipe; scores are means over the seeds."""
    lines = [
        "| recipe | task | metric | test rows | seeds | dense | sparse | int8 | sparse keeps | int8 keeps |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for recipe in dict.fromkeys(row.recipe for row in found):
        for task in dict.fromkeys(row.task for row in found if row.recipe == recipe):
            rows = [row for row in found if (row.recipe, row.task) == (recipe, task)]
            scores = [
                statistics.fmean(scores)
                for scores in zip(*((r.dense, r.sparse.score, r.int8.score) for r in rows), strict=True)
            ]
            words = [
                recipe,
                task,
                rows[0].metric,
                f"{rows[0].rows:,}",
                str(len(rows)),
                *(f"{score:.2%}" for score in scores),
            ]
            words += [_interval([getattr(row, name) for row in rows]) for name in VARIANTS]
            lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines) + "\n"


def _interval(of_seeds: Sequence[Kept]) -> str:
    known = [(one.percent, one.low, one.high) for one in of_seeds]
    if any(percent is None for percent, _, _ in known):
        return "-"
    percents, lows, highs = np.array(known, dtype=float).T
    return f"{statistics.fmean(percents):.1f} % ({min(lows):.1f} - {max(highs):.1f})"


def draw(path: Path, found: Sequence[Result]) -> None:
    """Retention of the int8 model by task, against the tokens that pruning read. The same results give the same bytes."""
    import matplotlib as mpl  # importing it takes a second
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "pruneonce", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        panel = figure.subplots()
        for i, task in enumerate(dict.fromkeys(row.task for row in found)):
            rows = [row for row in found if row.task == task]
            by_run: dict[tuple[int, str], list[float]] = {}
            for row in sorted(rows, key=lambda row: (row.tokens, row.recipe)):
                if row.int8.percent is not None:
                    by_run.setdefault((row.tokens, row.recipe), []).append(row.int8.percent)
            panel.plot(
                [tokens for tokens, _ in by_run],
                [statistics.fmean(percents) for percents in by_run.values()],
                marker="os^Dv<>"[i % 7],
                markersize=5,
                linewidth=1,
                label=task,
            )
        panel.set(xscale="log", xlabel="tokens that pruning read", ylabel="int8 score, % of dense")
        panel.axhline(100, color="grey", linewidth=0.8)
        panel.grid(alpha=0.3)
        figure.legend(loc="outside right center", frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="name of the recipe that params.yaml has now, such as default or thorough")
    recipe = parser.parse_args().recipe
    found = read(recipe)
    (FOLDER / "results").mkdir(exist_ok=True)
    path = FOLDER / "results" / f"{recipe}-{found[0].seed}.json"
    part = path.with_suffix(".part")  # a kill leaves the file whole: it holds hours
    part.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")
    part.replace(path)
    everything = saved()
    (FOLDER / "table.md").write_text(table(everything), encoding="utf-8")
    draw(FOLDER / "retention.svg", everything)
    print(table(found), end="")
    if left := [task for task in load().tasks if task not in {row.task for row in found}]:
        print(f"Not finished: {', '.join(left)}. Go on with: make run PROFILE=battery")


if __name__ == "__main__":
    with one_line_errors():
        main()
