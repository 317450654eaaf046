"""One unit of work on another machine: the stages of one task, or a cell of a sweep. A worker of the pool runs this.

Prefect has cloned the commit, and this flow runs in the clone. It takes params.yaml, dvc.lock and the list of stages from
MLflow's artifacts, and pulls what the stages read. It brings each stage up to date, pushes its outs, and hands its entry of
dvc.lock and its small files back to MLflow. So a worker that dies loses one stage, and of that one the steps since its last
checkpoint, if its scratch folder is on a disk that the next worker sees.

The clone is deleted after the run. What must outlive it is outside: DVC's cache and the checkpoints. They are in this user's
cache folder, unless DVC's `cache.dir` and PRUNEONCE_SCRATCH name others.
"""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from platformdirs import user_cache_path
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows import fresh, merging, restoring, trouble, units
from flows.repro import Outcome, quiet_logs, repro
from flows.units import KERNELS, LOCK, PARAMS, Unit
from pipeline.params.document import load
from pipeline.scratch import PLACE
from pipeline.stopping import PARENT
from pipeline.tracking import committed, handover
from pipeline.tracking.lock import blocks
from pruneonce.errors import DataError, PipelineError

TRIES, WAIT_SECONDS = 6, [5.0, 10.0, 30.0, 60.0, 300.0]  # for a remote or a server that is away


@flow(name="branch", flow_run_name="{name}", validate_parameters=True, persist_result=False, log_prints=False)
def branch(run: str, name: str, store: str | None = None) -> list[Outcome]:
    """Compute the unit of work `name` that was handed over in an MLflow run, and hand the results back to it.

    run: the id of that run. store: MLflow's address, for a worker without MLFLOW_TRACKING_URI.
    """
    if store:
        os.environ.setdefault("MLFLOW_TRACKING_URI", store)
    unit = Unit.of_json(handover.take(run, name))
    with trouble.plainly("a checkout that this worker can use"):
        prepare(unit)
    return work_off(run, unit)


def prepare(unit: Unit) -> None:
    """Make a fresh clone a place to work in: cache and scratch outside of it, the remote, the sparse kernels."""
    home = user_cache_path("pruneonce")
    os.environ.setdefault(PLACE, str(home / "scratch"))
    with Repo() as repo:
        remote, cached = unit.team.remote, repo.config["cache"].get("dir")
        settings = {option: value for option, value in (remote or {}).items() if option != "name"}
        known = remote is None or remote["name"] in repo.config["remote"]
        if not known and not settings:
            raise PipelineError(
                f"expected DVC's remote {(remote or {})['name']!r} on this worker, found none. Its address holds a "
                "password, so it is not handed over. Add it once: dvc remote add --global NAME URL"
            )
        with repo.config.edit("local") as local:
            if not cached:
                local["cache"]["dir"] = str(home / "cache")
            if remote and not known:
                local["remote"][remote["name"]] = settings
            if remote and not repo.config["core"].get("remote"):
                local["core"]["remote"] = remote["name"]
    if unit.team.kernels and not KERNELS.exists() and (problem := fresh.put_kernels(KERNELS, fresh.kept_kernels())):
        get_run_logger().warning(problem)


def work_off(run: str, unit: Unit) -> list[Outcome]:
    """Compute the stages of the unit in this folder, which is a clone of its commit, and hand each one back."""
    quiet_logs()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    logger, outcomes = get_run_logger(), list[Outcome]()
    with trouble.plainly("a checkout that this worker can use"):
        lay_out(unit)
        pulled = pull(unit.stages)
    with suppress(DataError, PipelineError):  # what a worker that died has handed back
        merging.merge(unit, handover.results(run, unit.name))
    logger.info("%s: %d stages; their deps are there, %.1f MB of them pulled", unit.name, len(unit.stages), pulled / 1e6)
    retried = repro.with_options(retries=load().machine.stage_retries)
    with below(unit.parent):
        for number, stage in enumerate(unit.stages, 1):
            outcome = restoring.restored(stage) or retried(stage)
            if outcome.result != "unchanged" or stage == unit.stages[-1]:  # else it was handed over, or has come back before
                deliver(run, unit, outcome)
            outcomes.append(outcome)
            logger.info(
                "%d/%d %s: %s (%s) %.1f s", number, len(unit.stages), stage, outcome.result, outcome.why, outcome.seconds
            )
    return outcomes


def lay_out(unit: Unit) -> None:
    """Write the files that were handed over. Raises PipelineError if they and this clone make another unit of it."""
    PARAMS.write_bytes(unit.params.encode())  # first: dvc.yaml is read with it
    LOCK.write_bytes(unit.lock.encode())
    with Repo() as repo:
        small = {units.path_of(out) for stage in repo.index.stages for out in stage.outs if not out.use_cache}
    if foreign := sorted(unit.files.keys() - small):
        raise DataError(
            f"expected files of the project in the work {unit.name}, found {', '.join(foreign)}. Nothing was computed."
        )
    for path, text in unit.files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(text.encode())
    head = committed.head()
    if head != unit.team.commit:
        raise PipelineError(
            f"expected the commit {unit.team.commit} in this clone, found {head}. Deploy the branches again."
        )
    with Repo() as repo:
        found = units.key(repo, unit.stages)
    if found != unit.key:
        raise PipelineError(
            f"expected code and inputs of the digest {unit.key} for {unit.name}, found {found}: this clone is not what the "
            "coordinator has. Compare the commits, and git's settings for line ends."
        )


def pull(stages: list[str]) -> int:
    """Get what these stages read from other ones. Returns the bytes that were not in DVC's cache yet."""
    with Repo() as repo:
        needed = [out for out in units.reads(repo, stages) if out.use_cache]
        absent = units.size(out for out in needed if out.changed_cache())
        restoring.fetch(repo, [units.path_of(out) for out in needed])
    return absent


@task(
    name="deliver",
    task_run_name="deliver {outcome.stage}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=TRIES - 1,
    retry_delay_seconds=WAIT_SECONDS,
)
def deliver(run: str, unit: Unit, outcome: Outcome) -> None:
    """Push the outs of a stage, then hand back its entry of dvc.lock and its small files: who finds it finds the outs.

    A team without a remote shares the cache: its outs are there.
    """
    stage = outcome.stage
    with trouble.plainly(f"a DVC remote that takes the outs of {stage}", trouble.REACH), Repo() as repo:
        if unit.team.remote is not None:
            repo.push(targets=[stage])
        small = [units.path_of(out) for found in repo.stage.collect(stage) for out in found.outs if not out.use_cache]
    handover.hand_back(run, unit.name, stage, result(unit, outcome, small))


def result(unit: Unit, outcome: Outcome, small: list[str]) -> dict[str, Any]:
    """What goes back of one stage."""
    return {
        "stage": outcome.stage,
        "key": unit.key,
        "entry": entry(LOCK.read_text(encoding="utf-8"), outcome.stage),
        "files": {path: Path(path).read_text(encoding="utf-8") for path in small},
        "result": outcome.result,
        "why": outcome.why,
        "seconds": outcome.seconds,
        "where": where(),
    }


def entry(lock: str, stage: str) -> dict[str, Any] | None:
    """The entry of a stage in the text of a dvc.lock; None if it has none."""
    with blocks(LOCK, lambda _: lock) as entries:
        return entries.get(stage)


def where() -> str:
    """The name of this worker, if somebody gave it one, else of its machine."""
    name = os.environ.get("PREFECT__WORKER_NAME", "")
    return socket.gethostname() if not name or name.startswith("ProcessWorker ") else name


@contextmanager
def below(parent: str) -> Iterator[None]:
    """The runs of stages that start inside lie below this MLflow run."""
    before = os.environ.get(PARENT)
    os.environ[PARENT] = parent
    try:
        yield
    finally:
        if before is None:
            del os.environ[PARENT]
        else:
            os.environ[PARENT] = before
