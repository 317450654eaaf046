"""The MLflow run over a flow run: its scores, the seconds of its stages, the runs that computed them, the report."""

import functools
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.tracking import unsent
from pipeline.tracking.address import shown
from pipeline.tracking.lock import Stage, locked
from pipeline.tracking.open_run import OpenRun, flatten, numbers
from pipeline.tracking.runs import close_lost_of, log_params, machine_tags, origin, process, runs_of, send_kept
from pipeline.tracking.store import store
from pruneonce.errors import TrackerUnreachable

NOTE = "mlflow.note.content"  # tag: what MLflow's page of the run says
OPEN: dict[str, None] = {}  # the runs that this process opened and did not close, in order
HEADLINES = ("score", "packed_bytes", "median_ms")  # of a row of the report


def start_flow(name: str, params: Mapping[str, Any], *, flow_run: str = "", parent: str = "") -> str:
    """Open the run over the stages of a flow run. flow_run: Prefect's id of it. parent: MLflow's run above, if there is one.

    Returns MLflow's id. Raises TrackerUnreachable.
    """
    tags = {
        **({"mlflow.parentRunId": parent} if parent else {}),
        "pruneonce.flow": name,
        "pruneonce.flow_run": flow_run,
        **origin("flows/compress.py"),
        **process(),
        **machine_tags(),
    }
    with store(" Nothing was started.") as (client, experiment):
        send_kept(client)
        close_lost_of(client, experiment)
        run_id = client.create_run(experiment, tags=tags, run_name=name).info.run_id
        OPEN[run_id] = None
        log_params(client, run_id, flatten(params))
    return run_id


@dataclass(frozen=True)
class Finished:
    """What a flow run leaves in its MLflow run.

    seconds: of each stage. scores: numbers by name, to sort runs by. note: Markdown. files: kept as artifacts.
    outcomes: stage -> what came of it, such as "restored from cache".
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    files: Sequence[Path] = ()
    outcomes: Mapping[str, str] = field(default_factory=dict)


def end_flow(run_id: str, status: str, left: Finished | None = None) -> None:
    """Close the parent run. A lost server is printed, not raised."""
    OPEN.pop(run_id, None)
    left = left or Finished()
    seconds = {stage.replace("@", "."): value for stage, value in left.seconds.items()}
    try:
        with store() as (client, _):
            run = OpenRun(client, run_id)
            run.log_numbers("", left.scores)
            run.log_numbers("seconds", seconds)
            if left.outcomes:
                recorded = locked()
                stages = {
                    stage: {"outcome": how, "run": _computed(recorded.get(stage))} for stage, how in left.outcomes.items()
                }
                run.survive(lambda: client.log_dict(run_id, stages, "stages.json"))
                run.tag({NOTE: f"{left.note}\n\n{_table(stages, client.get_run(run_id).info.experiment_id)}"})
            for file in left.files:
                run.survive(functools.partial(client.log_artifact, run_id, str(file), "report"))
            run.end(status)
    except TrackerUnreachable:
        metrics = [*numbers("", left.scores), *numbers("seconds", seconds)]
        unsent.keep(run_id, metrics=metrics, tags={NOTE: left.note} if left.note else {}, status=status)
        print(
            f"\nMLflow at {shown()} no longer answers; run {run_id} stays open there until the next run, or until: "
            "pruneonce register",
            file=sys.stderr,
        )


def scores(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The numbers of the report by which runs are sorted, such as r8.int8.score. rows: of report.json."""
    return {f"{row['task']}.{row['variant']}.{key}": row[key] for row in rows for key in HEADLINES}


def _computed(stage: Stage | None) -> str | None:
    """The run that computed what dvc.lock says of this stage, now or earlier; None if it is not in this store."""
    return next(iter(runs_of(stage)), None) if stage else None


def _table(stages: Mapping[str, Mapping[str, str | None]], experiment: str) -> str:
    """Markdown: every stage, and the run that computed it."""
    rows = [
        f"| {stage} | {row['outcome']} | "
        + (f"[{row['run'][:8]}](#/experiments/{experiment}/runs/{row['run']}) |" if row["run"] else "not in this store |")
        for stage, row in stages.items()
    ]
    return "\n".join(["| stage | outcome | computed by |", "|---|---|---|", *rows])
