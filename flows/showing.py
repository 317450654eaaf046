"""What a run shows: the outcome of each stage, the page with the measurements, the verdict of the gates, what to commit."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from flows.order import COMPRESS, Pipeline
from flows.repro import Outcome
from flows.units import RanOn
from pipeline import gates, git
from pipeline.params.document import load
from pipeline.stopping import PARENT

TRACKED = ("params.yaml", "dvc.lock", "data", "study")  # a run writes here, and git keeps it


def results(pipeline: Pipeline) -> Iterator[str]:
    """Markdown: the page with the measurements, the verdict of the gates, and where the page with plots is."""
    yield pipeline.page.read_text(encoding="utf-8")
    yield from verdicts(pipeline)
    html, parent = pipeline.page.with_suffix(".html"), os.environ.get(PARENT)
    if html.exists():
        kept = f"; MLflow keeps it in run `{parent}` as report/{html.name}" if parent else ""
        yield f"With plots: `{html}`{kept}."


def verdicts(pipeline: Pipeline) -> list[str]:
    """A line for each task that says which gates hold; none for a study."""
    return list(gates.judged(load()).values()) if pipeline is COMPRESS else []


def show(pipeline: Pipeline, outcomes: list[Outcome], seconds: float) -> None:
    """Print the result of each stage, the page with the measurements, and the verdict of the gates."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    spread = any(isinstance(o, RanOn) for o in outcomes)
    table = Table("stage", "outcome", *(["where"] if spread else []), "why", "seconds", title="Stages")
    for o in outcomes:
        where = [o.where if isinstance(o, RanOn) else "here"] if spread else []
        table.add_row(o.stage, o.result, *where, "" if o.result == "unchanged" else o.why, f"{o.seconds:.1f}")
    console.print(table)
    console.print(Markdown(pipeline.page.read_text()))
    for line in verdicts(pipeline):
        console.print(line, style="bold red" if gates.FAILED in line else "", markup=False, highlight=False)
    ran = sum(o.result == "ran" for o in outcomes)
    console.print(f"{ran} of {len(outcomes)} stages ran in {seconds:.0f} s. The table is in {pipeline.page}.")


def to_commit() -> list[str]:
    """Lines that say how to keep the run in git; none if git has it already."""
    changed = [path for path in TRACKED if Path(path).exists() and git.said("status", "--porcelain", "--", path)]
    if not changed:
        return []
    return [
        "To keep this run in git, so that the next profile can take its place:",
        f"  git add {' '.join(changed)} && git commit -m 'a run'",
    ]
