"""Give units of work to the workers of the pool, wait for them, and take over what comes back.

Each unit is a run of the deployment `branch/branch`. All start at once, and any worker takes the next. A worker that died
makes its run Crashed; then the unit is handed out again. One that fails is reported at the end, and the others are kept.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

import httpx
from dvc.repo import Repo
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Cancelling

from flows import commits, merging, restoring, stopping, trouble, units
from flows.repro import Outcome
from flows.trouble import StageFailed
from flows.units import KERNELS, RanOn, Team, Unit
from pipeline.tracking import address, handover
from pruneonce.errors import DataError, PipelineError, PruneOnceError, plain

DEPLOYMENT = "branch/branch"
LOOK_SECONDS = 2.0
IDLE_SECONDS = 60.0  # after which a unit that nobody took is worth a line


def team() -> Team:
    """What the workers need to know. Raises PipelineError if they could not work: before anything is computed."""
    if get_current_settings().api.url is None:
        raise PipelineError(
            "expected a Prefect server that the workers ask for work, found none. Start one: prefect server start; and name "
            "it: prefect config set PREFECT_API_URL=http://SERVER:4200/api"
        )
    commit, repository = commits.check()
    with trouble.plainly("a pipeline that DVC can read"), Repo() as repo:
        remote = units.remote_of(repo)
    if remote is None:
        raise PipelineError(
            "expected a DVC remote, through which the machines exchange models, found none. Set one: "
            "dvc remote add --local --default storage s3://BUCKET/dvc; a folder that all machines see will do too."
        )
    try:
        with get_client(sync_client=True) as client:
            client.read_deployment_by_name(DEPLOYMENT)
    except ObjectNotFound:
        raise PipelineError(
            f"expected the deployment {DEPLOYMENT} on the Prefect server, found none. Make it: prefect deploy --name branch"
        ) from None
    return Team(commit, repository, remote, KERNELS.exists())


@dataclass
class Handed:
    """A unit that a worker has, or will take.

    run: the MLflow run with its artifacts. ready: its stages that are up to date here. tries: how often it may be repeated.
    """

    unit: Unit
    run: str
    flow_run: UUID
    ready: set[str]
    tries: int


def work_off(
    given: Mapping[str, list[str]], parent: str, team: Team, *, retries: int, done: Callable[[Outcome], object]
) -> None:
    """Have units of stages computed by workers. given: name -> stages, whose deps are up to date. parent: the MLflow run.

    done: takes the outcome of each stage that was computed or restored, as soon as that is known.
    Raises StageFailed, after all others came back, if a unit failed.
    """
    with cancelled_at_the_end() as handed:
        for name, stages in given.items():
            ready = set()
            for outcome in _without_computing(name, stages, parent, team):
                ready.add(outcome.stage)
                done(outcome)
            if len(ready) < len(stages):
                handed.append(hand_out(name, stages, parent, team, ready, retries))
        collect(handed, parent, team, done)


def _without_computing(name: str, stages: list[str], parent: str, team: Team) -> Iterator[Outcome]:
    """Bring the first stages of a unit up to date: from DVC's cache, its remote, or what came back to an earlier run."""
    ready: set[str] = set()
    for stage in stages:
        outcome = restoring.restored(stage)
        if outcome is None:
            break
        ready.add(stage)
        yield outcome
    if len(ready) == len(stages):
        return
    unit = _unit(name, stages, parent, team)
    for run in handover.runs_with(unit.key):
        with suppress(DataError, PipelineError):  # the remote may have lost them since
            for outcome in merging.merge(unit, handover.results(run, name), ready):
                ready.add(outcome.stage)
                yield outcome


def _unit(name: str, stages: list[str], parent: str, team: Team) -> Unit:
    with trouble.plainly(f"DVC to say what {name} is made of"), Repo() as repo:
        return units.unit(repo, name, stages, parent=parent, team=team)


def hand_out(name: str, stages: list[str], run: str, team: Team, ready: set[str], tries: int) -> Handed:
    """Push what the unit reads, and start a run of the deployment; a run that is at the same work already is taken."""
    unit = _unit(name, stages, run, team)
    if known := _at_work(unit):
        get_run_logger().info("%s: run %s of an earlier coordinator is at it; its result is waited for", name, known.name)
        return Handed(unit, str(known.parameters["run"]), known.id, ready, tries)
    with trouble.plainly("a DVC remote that takes what the workers read"), Repo() as repo:
        needed = [units.path_of(out) for out in units.reads(repo, stages) if out.use_cache]
        if targets := [*needed, *sorted(ready)]:
            repo.push(targets=targets)
    handover.give(run, name, unit.key, unit.as_json())
    started = cast(
        FlowRun,
        run_deployment(
            DEPLOYMENT,
            parameters={"run": run, "name": name, "store": _store()},
            job_variables={"env": {commits.COMMIT: team.commit, commits.REPOSITORY: team.repository}},
            flow_run_name=name,
            tags=[_tag(unit)],
            timeout=0,
        ),
    )
    return Handed(unit, run, started.id, ready, tries)


def _tag(unit: Unit) -> str:
    return f"work-{unit.key}"


def _store() -> str | None:
    """MLflow's address for workers that have none of their own; None if it holds a password, for Prefect shows it."""
    uri = address.uri()
    if file := address.sqlite_file(uri):
        return f"sqlite:///{file.absolute()}"
    return uri if plain(uri) == uri else None


def _at_work(unit: Unit) -> FlowRun | None:
    """A run that is at this very work: its coordinator was killed, or is another folder."""
    wanted = FlowRunFilter.model_validate(
        {"tags": {"all_": [_tag(unit)]}, "state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}}}
    )
    with get_client(sync_client=True) as client:
        return next(iter(client.read_flow_runs(flow_run_filter=wanted, limit=1)), None)


def collect(handed: list[Handed], run: str, team: Team, done: Callable[[Outcome], object]) -> None:
    """Wait for all units and take over what comes back, each as soon as it does. Raises StageFailed at the end."""
    failed: dict[str, str] = {}
    idle = Idle()
    while handed:
        for one in list(handed):
            state = _state(one.flow_run)
            if state is None or not state.is_final():
                continue
            handed.remove(one)
            found, why = _back(one, state)
            for outcome in found:
                one.ready.add(outcome.stage)
                done(outcome)
            if why and state.is_crashed() and one.tries:
                get_run_logger().warning("%s: its worker died (%s); another one takes it", one.unit.name, why)
                handed.append(hand_out(one.unit.name, one.unit.stages, run, team, one.ready, one.tries - 1))
            elif why:
                failed[one.unit.name] = why
                get_run_logger().error("%s failed: %s", one.unit.name, why)
            else:
                get_run_logger().info("%s came back from %s", one.unit.name, ", ".join(sorted({o.where for o in found})))
        idle.look(handed)
        if handed:
            time.sleep(LOOK_SECONDS)
    if failed:
        told = "; ".join(f"{name} failed on its worker: {why}" for name, why in failed.items())
        raise StageFailed(f"{told} All else that was computed is kept; run again for what is missing.")


def _back(one: Handed, state: State[Any]) -> tuple[list[RanOn], str]:
    """What came back of a unit whose run ended, and why that is not all; empty if it is all."""
    try:
        found = merging.merge(one.unit, handover.results(one.run, one.unit.name), one.ready)
    except PruneOnceError as error:
        return [], f"{type(error).__name__}: {error}"
    if one.ready | {outcome.stage for outcome in found} == set(one.unit.stages):
        return found, ""
    said = plain(state.message or state.name).removeprefix("Flow run encountered an exception: ").rstrip(".")
    return found, f"{said}."


def _state(flow_run: UUID) -> State[Any] | None:
    """The state of a run; None while the server does not answer."""
    try:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(flow_run).state
    except ObjectNotFound:
        return Cancelled(message="somebody deleted its run")
    except httpx.TransportError:
        return None


@dataclass
class Idle:
    """Says now and then that units wait for a worker."""

    since: float = field(default_factory=time.monotonic)

    def look(self, handed: list[Handed]) -> None:
        if not handed or time.monotonic() - self.since < IDLE_SECONDS:
            return
        self.since = time.monotonic()
        if waiting := [one.unit.name for one in handed if (state := _state(one.flow_run)) and state.is_scheduled()]:
            get_run_logger().warning(
                "%s: no worker took it yet. Each worker takes one at a time: prefect worker start --pool pruneonce",
                ", ".join(waiting),
            )


@contextmanager
def cancelled_at_the_end() -> Iterator[list[Handed]]:
    """The units that are handed out inside. If this run is stopped, theirs are cancelled."""
    handed: list[Handed] = []
    listens, main = stopping.listens(), threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.default_int_handler) if main else None
    try:
        yield handed
    except BaseException as error:
        for one in handed:
            with suppress(Exception), get_client(sync_client=True) as client:
                client.set_flow_run_state(one.flow_run, Cancelling())
        if listens and isinstance(error, KeyboardInterrupt):
            stopping.leave()
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
