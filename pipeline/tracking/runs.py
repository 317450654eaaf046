"""MLflow's runs: one per executed stage, under one parent per flow run (`flow_runs`) or experiment of DVC's.

The server is asked before work starts. A stage that was killed continues its run.
"""

import contextlib
import getpass
import json
import os
import re
import shutil
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient
from mlflow.entities import Param

from pipeline import machine
from pipeline.holder import CLOCK_SECONDS
from pipeline.stopping import PARENT
from pipeline.tracking import committed, unsent
from pipeline.tracking.lock import Stage
from pipeline.tracking.open_run import OpenRun, md5_tags, set_tags
from pipeline.tracking.store import in_batches, store, unless_refused

RUN = "run"  # file in a stage's scratch folder: the id of its run, for the process that continues it
EXPERIMENT = "pruneonce.experiment"  # tag of a run: the experiment of DVC that it is
HOST, PROCESS = "pruneonce.host", "pruneonce.process"  # tags: by whom a run is written
MARK = "pruneonce.mark"  # tag: what the scratch folder has until it has the run's id


@contextmanager
def stage_run(
    name: str,
    params: Mapping[str, Any],
    deps: Mapping[str, str],
    *,
    code: Mapping[str, str] | None = None,
    source: str = "",
    scratch: Path | None = None,
) -> Iterator[OpenRun]:
    """One MLflow run around a stage. It ends as finished or failed.

    It says what the stage was made of: its parameters, the md5 of each dep and each file of code, the git commit, the
    versions of packages, the processor. Its parent is the run of the flow, or that of DVC's experiment.

    source: the stage's file. scratch: a folder that outlives a killed process; the run that is named there is continued.
    Raises TrackerUnreachable before anything is started.
    """
    made_of = {**md5_tags("deps", deps), **md5_tags("code", code or {}), **machine_tags()}
    tags = {"mlflow.runName": name, "pruneonce.stage": name, **origin(source), **process(), **made_of}
    with store(" Nothing was started.") as (client, experiment):
        above = None if PARENT in os.environ else _experiment_run(client, experiment)
        if parent := os.environ.get(PARENT) or above:
            tags["mlflow.parentRunId"] = parent
        send_kept(client)
        before = _resumed(client, experiment, scratch, tags)
        run_id = before or _begun(client, experiment, scratch, name, tags)
        log_params(client, run_id, params)
        close_lost_of(client, experiment)

    run, status = OpenRun(client, run_id, experiment=above, begun=before is not None), "FAILED"
    try:
        if scratch:
            _write_name(scratch / RUN, run_id)
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        run.end(status)
        if above and not run.survive(lambda: client.set_terminated(above, status)):  # it ends with its last stage
            unsent.keep(above, status=status)


def send_kept(client: MlflowClient) -> None:
    """Send what earlier runs could not, before lost runs are closed: they may have ended well."""
    for line in unsent.send(client):
        print(f"\n{line}", file=sys.stderr)


def _experiment_run(client: MlflowClient, experiment: str) -> str | None:
    """The run over all stages of a `dvc exp run`, made with its first stage; None outside of one."""
    name = os.environ.get(committed.EXPERIMENT)
    if not name:
        return None
    found = client.search_runs([experiment], f"tags.`{EXPERIMENT}` = '{name.replace(chr(39), '')}'", max_results=1)
    if found:
        return found[0].info.run_id
    tags = {EXPERIMENT: name.replace("'", ""), **origin("dvc exp run")}
    return client.create_run(experiment, tags=tags, run_name=name).info.run_id


def machine_tags() -> dict[str, str]:
    """Tags: the processor, and the versions of the packages that compute."""
    return {
        "pruneonce.processor": f"{machine.processor()}, {machine.cores()} cores",
        "pruneonce.versions": json.dumps(machine.versions(), sort_keys=True),
    }


def _resumed(client: MlflowClient, experiment: str, scratch: Path | None, tags: Mapping[str, str]) -> str | None:
    """Reopen the run that is named in the scratch folder. Returns its id; None if there is none, or it was deleted."""
    run_id = _read_name(scratch / RUN) if scratch else None
    if run_id is None:
        return None
    info = None
    with unless_refused():  # it may be a run of another store, or the mark of a process that was killed as it made the run
        info = client.get_run(run_id).info
    if info is None and (made := client.search_runs([experiment], f"tags.`{MARK}` = '{run_id}'", max_results=1)):
        info, run_id = made[0].info, made[0].info.run_id
    if info is None or info.experiment_id != experiment or info.lifecycle_stage != "active":
        return None
    unsent.drop(run_id)
    # The tags come first: another process closes an open run whose process is gone.
    set_tags(client, run_id, tags)
    client.update_run(run_id, status="RUNNING")
    return run_id


def _begun(client: MlflowClient, experiment: str, scratch: Path | None, name: str, tags: Mapping[str, str]) -> str:
    """Make a run; returns its id. Its mark is in the scratch folder before: a process may be killed as it makes the run."""
    mark = uuid.uuid4().hex
    if scratch:
        _write_name(scratch / RUN, mark)
    return client.create_run(experiment, tags={**tags, MARK: mark}, run_name=name).info.run_id


def _read_name(file: Path) -> str | None:
    """The id of a run in a file; None if there is no such file, or if it is damaged."""
    with contextlib.suppress(OSError, ValueError):
        text = file.read_text(encoding="ascii")
        return text if re.fullmatch("[0-9a-f]{32}", text) else None
    return None


def _write_name(file: Path, run_id: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir():  # a damaged scratch folder
        shutil.rmtree(file)
    part = file.with_name(f"{file.name}.part")
    part.write_text(run_id)
    part.replace(file)


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    entries = [Param(key, str(value)) for key, value in params.items()]
    in_batches(entries, lambda some: client.log_batch(run_id, params=some))


def process() -> dict[str, str]:
    """Tags: the machine, and this process with the second it started in, because process numbers are used again."""
    return {HOST: socket.gethostname(), PROCESS: f"{os.getpid()} {psutil.Process().create_time():.2f}"}


def _lives(process: str) -> bool:
    """Whether such a process exists. A process of a container with this machine's name is not seen: its run is closed as
    killed, and as finished when it ends."""
    number, _, started = process.partition(" ")
    with contextlib.suppress(psutil.NoSuchProcess, ValueError):
        return abs(psutil.Process(int(number)).create_time() - float(started)) < CLOCK_SECONDS
    return False


def catch_up() -> Iterator[str]:
    """Send what MLflow did not take of earlier runs; close the runs that killed processes of this machine left open.

    Yields a line for each. Raises TrackerUnreachable.
    """
    with store() as (client, experiment):
        yield from unsent.send(client)
        yield from (
            f"{name}: its process is gone, so its run is closed as KILLED" for name in close_lost_of(client, experiment)
        )


def close_lost_of(client: MlflowClient, experiment: str) -> list[str]:
    here = f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{socket.gethostname()}'"
    lost = [run for run in client.search_runs([experiment], here) if not _lives(run.data.tags.get(PROCESS, ""))]
    closed: list[str] = []
    for run in lost:
        with unless_refused():  # another process may have deleted it
            client.set_terminated(run.info.run_id, "KILLED")
            closed.append(run.info.run_name)
    return closed


def runs_of(stage: Stage) -> list[str]:
    """The ids of the runs that computed exactly these outs, newest first, also if the outs came from DVC's cache since.

    Raises TrackerUnreachable.
    """
    with store() as (client, experiment):
        return [run.info.run_id for run in runs_that_made(client, experiment, stage)]


def runs_that_made(client: MlflowClient, experiment: str, stage: Stage) -> list[Any]:
    """The runs of our experiment that computed exactly these outs, newest first."""
    digest = md5_tags("outs", stage.outs)["pruneonce.outs.digest"]
    query = f"tags.`pruneonce.stage` = '{stage.name}' and tags.`pruneonce.outs.digest` = '{digest}'"
    return list(client.search_runs([experiment], query, order_by=["start_time DESC"]))


def results(run_ids: Sequence[str]) -> dict[str, float]:
    """The closing metrics of the first of these runs by name; empty if there is none. Raises TrackerUnreachable."""
    with store() as (client, _):
        metrics = client.get_run(run_ids[0]).data.metrics if run_ids else {}
    return {key.removeprefix("result."): value for key, value in metrics.items() if key.startswith("result.")}


def origin(source: str) -> dict[str, str]:
    """Tags that MLflow's pages show: the user, the source file, the git commit, and whether code or params differ."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = "unknown"
    return {
        "mlflow.user": user,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": source,
        "mlflow.source.git.commit": committed.head() or "none",
        "pruneonce.dirty": str(bool(committed.edited())).lower(),
    }
