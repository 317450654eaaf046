"""What the report knows: of each task, and of them all. The page and the cards read nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import gates
from pipeline.gates import Measured, Verdict
from pipeline.params.document import TASK_STAGES
from pipeline.params.metrics import METRICS
from pipeline.params.sections import Common, Gates, Sparsify
from pipeline.report import Row, task_rows
from pipeline.reporting import lineage, origins
from pipeline.reporting.lineage import Drawing
from pipeline.reporting.origins import Source
from pipeline.tracking.lock import Stage

MORE_TIMES = ("p90_ms", "p99_ms")  # of a call, beside the table's
SHIPS = ("int8_sparse", "int8")  # what is deployed: the first one that was evaluated


@dataclass(frozen=True)
class TaskFacts:
    """One task. scores, latencies, answers: the files of `evaluate`."""

    name: str
    rows: list[Row]
    scores: Mapping[str, Any]
    latencies: Mapping[str, Any]
    answers: Mapping[str, Any]
    verdicts: Sequence[Verdict]
    source: Source
    recipes: Mapping[str, Mapping[str, Any]]  # stage -> the parameters it ran with; empty ones where dvc.lock does not say

    @property
    def ships(self) -> Row:
        """The row of the model that is deployed."""
        by_name = {row["variant"]: row for row in self.rows}
        return next(by_name[name] for name in SHIPS if name in by_name)

    @property
    def failed(self) -> list[Verdict]:
        """The gates that do not hold."""
        return gates.failed(self.verdicts)

    @property
    def kind(self) -> str:
        """The kind of the task. A kind without classes is told by what was measured: its first metric always is."""
        if self.answers["labels"] is not None:
            return "classification"
        measured = set(self.scores["dense"]["metrics"])
        return next(
            kind
            for kind, metrics in METRICS.items()
            if kind != "classification" and metrics[0] in measured and measured <= set(metrics)
        )

    @property
    def operators(self) -> dict[str, Mapping[str, float]]:
        """Variant -> operator -> ms of a call."""
        return {row["variant"]: self.latencies[row["variant"]]["operators_ms"] for row in self.rows}

    @property
    def machine(self) -> Mapping[str, Any]:
        """On what the times were measured."""
        return self.latencies["machine"]


@dataclass(frozen=True)
class Facts:
    """All tasks, the model that they share, and where it all came from."""

    title: str
    tasks: list[TaskFacts]
    common: Common
    sparsify: Sparsify
    base: Source
    lineage: Drawing

    @property
    def version(self) -> str | None:
        """The version of pruneonce that a project of `pruneonce init` names; None in a clone of the code."""
        return next((v for node in self.lineage.nodes if (v := node.stage.params.get("pruneonce"))), None)

    @property
    def imported(self) -> bool:
        """Whether the zeros came with a checkpoint: no stage here pruned it."""
        return any(node.stage.name == "import_sparse" for node in self.lineage.nodes)


def task_facts(measured: Measured, limits: Gates, stages: Mapping[str, Stage]) -> TaskFacts:
    """What the files of one task say. stages: of dvc.lock."""
    name = measured.task
    scores, latencies, answers = measured.scores, measured.latencies, measured.answers
    recipes = {stage: origins.recipe(stage, name, stages) for stage in TASK_STAGES}
    rows = [
        {**row, **{key: latencies[row["variant"]][key] for key in MORE_TIMES}} for row in task_rows(name, scores, latencies)
    ]
    verdicts = gates.of(measured, limits)
    return TaskFacts(name, rows, scores, latencies, answers, verdicts, origins.task_source(name, stages), recipes)


def gather(title: str, tasks: list[TaskFacts], stages: Mapping[str, Stage], *, common: Common, sparsify: Sparsify) -> Facts:
    """Put the tasks together. stages: of dvc.lock; only those that these tasks come from are drawn."""
    drawing = lineage.draw(stages, [task.name for task in tasks])
    return Facts(title, tasks, common, sparsify, origins.source(common.model, stages), drawing)
