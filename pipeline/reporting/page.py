"""The page: everything that the report shows, as one HTML file that asks the network for nothing."""

import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.report import VARIANTS
from pipeline.reporting import charts, lineage, matrices, timing, training, words
from pipeline.reporting.curves import Curve
from pipeline.reporting.facts import Facts, TaskFacts
from pipeline.reporting.pareto import dominated
from pipeline.reporting.vega import Chart

FOLDER = Path(__file__).parent
MINUS = "\u2212"


@dataclass(frozen=True)
class Column:
    """A column of the table of results. unit: under its name; shows: the value as text."""

    field: str
    title: str
    unit: str
    shows: Callable[[float], str]


def signed(value: float) -> str:
    """A difference in points: +0.18, 0.00, −0.78."""
    text = f"{100 * value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", MINUS)


def number(form: str, factor: float = 1.0) -> Callable[[float], str]:
    """A formatter."""
    return lambda value: format(value * factor, form).replace("-", MINUS)


COLUMNS = (
    Column("score", "score", "%", number(".2f", 100)),
    Column("score_change", "to dense", "points", signed),
    Column("score_low", "95 % from", "%", number(".1f", 100)),
    Column("score_high", "to", "%", number(".1f", 100)),
    Column("sparsity", "sparsity", "%", number(".2f", 100)),
    Column("file_bytes", "file", "MB", number(".1f", 1e-6)),
    Column("packed_bytes", "packed", "MB", number(".1f", 1e-6)),
    Column("times_smaller", "smaller", "times", number(".1f")),
    Column("median_ms", "p50", "ms", number(".1f")),
    Column("p90_ms", "p90", "ms", number(".1f")),
    Column("p99_ms", "p99", "ms", number(".1f")),
    Column("times_faster", "faster", "times", number(".2f")),
    Column("resident_bytes", "memory", "MB", number(".0f", 1e-6)),
)


SECTIONS = (
    ("results", "Results"),
    ("trade-offs", "Score against size and time"),
    ("speed", "Time of a call"),
    ("sparsity", "Sparsity"),
    ("answers", "Answers"),
    ("training", "Training"),
    ("lineage", "Lineage"),
    ("reproduce", "How to reproduce"),
    ("limits", "Use and limits"),
)


@functools.cache
def scripts() -> str:
    """Vega, Vega-Lite and vega-embed in one script."""
    return vl_convert.javascript_bundle().replace("</script", "<\\/script")  # type: ignore[call-arg]


def embedded(data: Any) -> Markup:
    """JSON inside a script element: no text in it can end the element. A number that is none becomes null."""
    return Markup(json.dumps(_finite(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"))


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


@dataclass(frozen=True)
class TaskView:
    """What the page shows of one task."""

    facts: TaskFacts
    trade: list[Chart]
    dominated: list[tuple[str, list[list[str]]]]  # variant -> the variants that dominate it, for each plot of `trade`
    heat: list[Chart]
    confusion: list[Chart]
    classes: list[dict[str, Any]]
    hidden_classes: int
    curves: list[tuple[str, list[Chart]]]
    times: list[Chart]

    @property
    def charts(self) -> Iterator[Chart]:
        """Every plot."""
        yield from self.trade
        yield from self.heat
        yield from self.confusion
        yield from (chart for _, some in self.curves for chart in some)
        yield from self.times


def view(task: TaskFacts, curves: Sequence[Curve], named: Sequence[str]) -> TaskView:
    """Draw a task. named: the operators that have a colour of their own, the same for every task."""
    name, rows = task.name, task.rows
    costs = {"packed_bytes": "packed megabytes", "median_ms": "median ms of a call"}
    trade = [charts.trade_off(name, rows, cost, title) for cost, title in costs.items()]
    beaten = list(
        zip([row["variant"] for row in rows], zip(*(dominated(rows, cost) for cost in costs), strict=True), strict=True)
    )
    before_after = [v for v in ("dense", "int8") if v in task.scores]
    heat = [charts.heat_map(name, v, matrices.sparsity_cells(task.scores[v]["sparsity_of"])) for v in before_after]
    confused, classes, hidden = _confusion(task)
    drawn = [(curve.stage, training.plots(curve)) for curve in curves if curve.task == name]
    times = [timing.operators(name, task.operators, named), timing.percentiles(name, rows)]
    return TaskView(task, trade, [(v, list(by)) for v, by in beaten], heat, confused, classes, hidden, drawn, times)


def _confusion(task: TaskFacts) -> tuple[list[Chart], list[dict[str, Any]], int]:
    """The matrices, the table of classes, and the number of classes that the matrices leave out."""
    answers = task.answers
    if answers["labels"] is None:
        return [], [], 0
    classes, labels = answers["classes"], answers["labels"]
    decisions = {row["variant"]: answers["variants"][row["variant"]]["decisions"] for row in task.rows}
    counts: dict[str, Counter] = {v: matrices.confusion(labels, found) for v, found in decisions.items()}
    indexes = matrices.shown_classes(classes, list(counts.values()))
    shown = [classes[index] for index in indexes]
    drawn = [
        charts.confusion(task.name, variant, matrices.confusion_cells(count, classes, indexes), shown)
        for variant, count in counts.items()
    ]
    return drawn, matrices.class_rows(labels, decisions, classes), len(classes) - len(shown)


def render(facts: Facts, curves: Sequence[Curve]) -> str:
    """The page as text."""
    named = timing.expensive([found for task in facts.tasks for found in task.operators.values()])
    views = [view(task, curves, named) for task in facts.tasks]
    shared = [(curve.stage, training.plots(curve)) for curve in curves if curve.task is None]
    every = [chart for one in views for chart in one.charts] + [chart for _, some in shared for chart in some]
    present = {row["variant"] for task in facts.tasks for row in task.rows}
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        facts=facts,
        views=views,
        shared=shared,
        columns=COLUMNS,
        variants={name: label for name, label in VARIANTS.items() if name in present},
        names=VARIANTS,
        signed=signed,
        sections=SECTIONS,
        box=(lineage.WIDTH, lineage.HEIGHT),
        said=words.STAGES,
        lead=words.lead(facts),
        commands=words.commands(facts),
        pruning=words.pruning(facts),
        machines=words.machines(facts),
        intended=words.INTENDED,
        limits=words.limits(facts, facts.tasks),
        style=Markup((FOLDER / "page.css").read_text()),
        behaviour=Markup((FOLDER / "page.js").read_text()),
        vega=Markup(scripts()),
        data=embedded(
            {
                "rows": [row for task in facts.tasks for row in task.rows],
                "curves": [asdict(curve) for curve in curves],
                "charts": {chart.id: {"spec": chart.spec, "rows": chart.rows, "text": chart.text} for chart in every},
            }
        ),
    )
