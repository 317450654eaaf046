"""Work that one machine hands to another, and what comes back: small files, kept as artifacts of an MLflow run.

`work/<name>.json` says what is to be done. `done/<name>/<stage>.json` is the result of one stage. Both are JSON, and each is
written once, as a whole. MLflow is the one store that the machines share already; models go through DVC's remote.
"""

import json
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from pipeline.tracking.address import shown
from pipeline.tracking.store import refused, store, unless_refused
from pruneonce.errors import PipelineError

WORK, DONE, CELLS = "work", "done", "cells"
CELL = "pruneonce.cell."  # and a key: the run has the rows of a sweep's cell with this key
TAG = "pruneonce.work."  # and a key: the run has work with this key. The value is its name


def give(run: str, name: str, key: str, work: Mapping[str, Any]) -> None:
    """Put work into a run's artifacts. key: a digest of all that determines its result. Raises TrackerUnreachable."""
    with store(" Nothing was handed over.") as (client, _):
        client.log_text(run, json.dumps(work), f"{WORK}/{name}.json")
        client.set_tag(run, TAG + key, name)  # last: who finds it finds the file


def take(run: str, name: str) -> dict[str, Any]:
    """The work of this name. Raises PipelineError if the run is not in this store, TrackerUnreachable."""
    with store() as (client, _):
        work = _read(client, run, f"{WORK}/{name}.json")
    if work is None:
        raise PipelineError(
            f"expected the work {name!r} of run {run} in MLflow at {shown()}, found none. MLFLOW_TRACKING_URI must name the "
            "store of the machine that handed it out."
        )
    return work


def hand_back(run: str, name: str, stage: str, result: Mapping[str, Any]) -> None:
    """Put the result of one stage into the run's artifacts. Raises TrackerUnreachable."""
    with store() as (client, _):
        client.log_text(run, json.dumps(result), f"{DONE}/{name}/{_file(stage)}")


def results(run: str, name: str) -> dict[str, dict[str, Any]]:
    """Stage -> its result, of the stages that came back so far. Raises TrackerUnreachable."""
    with store() as (client, _):
        found = [file.path for file in client.list_artifacts(run, f"{DONE}/{name}")]
        read = [_read(client, run, path) for path in found]
    return {result["stage"]: result for result in read if result and isinstance(result.get("stage"), str)}


def runs_with(key: str) -> list[tuple[str, str]]:
    """The runs that have work with this key, the newest first, and its name there. Raises TrackerUnreachable."""
    with store() as (client, experiment):
        found = client.search_runs([experiment], f"tags.`{TAG}{key}` != ''", order_by=["attributes.start_time DESC"])
    return [(run.info.run_id, run.data.tags[TAG + key]) for run in found]


def close_runs(parents: Collection[str], stages: Collection[str]) -> list[str]:
    """Close the open runs of these stages below these runs: their worker died, and its machine may never come back.

    Whoever goes on from its checkpoint on a shared disk opens the run again. Returns their ids. Raises TrackerUnreachable.
    """
    with store() as (client, experiment):
        below = [
            run
            for parent in parents
            for run in client.search_runs(
                [experiment], f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{parent}'"
            )
        ]
        lost = [run.info.run_id for run in below if run.data.tags.get("pruneonce.stage") in stages]
        for run_id in lost:
            with unless_refused():  # another process may have deleted it
                client.set_terminated(run_id, "KILLED")
    return lost


def keep_rows(run: str, name: str, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep the rows of a finished cell of a sweep. key: a digest of all that determines them. Raises TrackerUnreachable."""
    with store() as (client, _):
        client.log_text(run, json.dumps({"rows": rows}), f"{CELLS}/{name}.json")
        client.set_tag(run, CELL + key, name)


def kept_rows(key: str) -> list[dict[str, Any]] | None:
    """The rows of a cell that this sweep or another one finished; None if there are none. Raises TrackerUnreachable."""
    with store() as (client, experiment):
        for run in client.search_runs([experiment], f"tags.`{CELL}{key}` != ''", order_by=["attributes.start_time DESC"]):
            if found := _read(client, run.info.run_id, f"{CELLS}/{run.data.tags[CELL + key]}.json"):
                rows: list[dict[str, Any]] = found["rows"]
                return rows
    return None


def _file(stage: str) -> str:
    return f"{stage.replace('@', '.')}.json"


def _read(client: MlflowClient, run: str, path: str) -> dict[str, Any] | None:
    """A JSON artifact; None if there is none, or if whoever wrote it was killed meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            text = Path(client.download_artifacts(run, path, folder)).read_text(encoding="utf-8")
        except Exception as error:
            if _absent(error):
                return None
            raise
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _absent(error: Exception) -> bool:
    """Whether this is how a store says that it has no such artifact: a folder, a server, a server's own storage."""
    answer = getattr(getattr(error, "response", None), "status_code", None)
    if answer is not None:
        return bool(answer == 404)
    # Not `404` alone: the ids of runs, ports and sizes have it too, in the message of a server that is away.
    said = r"RESOURCE_DOES_NOT_EXIST|No such file or directory|\b404 Client Error\b|\(404\)"
    return refused(error) or re.search(said, str(error)) is not None
