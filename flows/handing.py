"""Give units of work to the workers of the pool, and wait for them.

Each unit is a run of the deployment `branch/branch`. All start at once, and any worker takes the next. A worker that died
makes its run Crashed; then the unit is handed out again. One that fails is reported at the end, and the others are kept.
"""

import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling

from flows import commits, stopping
from flows.repro import Outcome
from flows.trouble import StageFailed
from flows.units import RanOn, Unit
from pipeline.tracking import address, handover
from pruneonce.errors import PruneOnceError, TrackerUnreachable, plain

DEPLOYMENT = "branch/branch"
LOOK_SECONDS = 2.0
ASK_AGAIN = 30  # times, for results in a store that does not answer; each takes some seconds
IDLE_SECONDS = 60.0  # after which a unit that nobody took is worth a line
Take = Callable[[Unit, Mapping[str, Mapping[str, Any]], Collection[str]], list[RanOn]]


@dataclass
class Handed:
    """A unit that a worker has, or will take.

    run: the MLflow run with its artifacts. ready: its stages that came back. tries: how often it may be repeated.
    """

    unit: Unit
    run: str
    flow_run: UUID
    ready: set[str]
    tries: int


def hand_out(unit: Unit, run: str, *, ready: set[str], tries: int) -> Handed:
    """Start a run of the deployment; one that is at the same work already is waited for instead."""
    if known := _at_work(unit):
        get_run_logger().info("%s: run %s of an earlier coordinator is at it; it is waited for", unit.name, known.id)
        return Handed(unit, str(known.parameters["run"]), known.id, ready, tries)
    handover.give(run, unit.name, unit.key, unit.as_json())
    started = run_deployment(
        DEPLOYMENT,
        parameters={"run": run, "name": unit.name, "store": store_address()},
        job_variables={"env": {commits.COMMIT: unit.team.commit, commits.REPOSITORY: unit.team.repository}},
        flow_run_name=unit.name,
        tags=[_tag(unit)],
        timeout=0,
    )
    return Handed(unit, run, cast(FlowRun, started).id, ready, tries)


def _tag(unit: Unit) -> str:
    return f"work-{unit.key}"


def store_address() -> str | None:
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


def collect(
    handed: list[Handed],
    run: str,
    take: Take,
    done: Callable[[Outcome], object],
    lost: Callable[[str, str], object] = lambda name, why: None,
) -> None:
    """Wait for all units, and take over what comes back, each as soon as it does.

    lost: takes the name of a unit that failed, and why. Raises StageFailed at the end if there is one.
    """
    failed: dict[str, str] = {}
    idle = Idle()
    while handed:
        for one in list(handed):
            state = _state(one.flow_run)
            if state is not None and state.is_final():
                try:
                    why = _came_back(one, state, take, done)
                except TrackerUnreachable as error:  # it has the result: wait until it answers again
                    if idle.asks_in_vain < ASK_AGAIN:
                        idle.asks_in_vain += 1
                        continue
                    why = f"{type(error).__name__}: {error}"
                handed.remove(one)
                if why:
                    if state.is_crashed() and one.tries:
                        get_run_logger().warning("%s: its worker died: %s Another one takes it.", one.unit.name, why)
                        handed.append(hand_out(one.unit, run, ready=one.ready, tries=one.tries - 1))
                    else:
                        failed[one.unit.name] = why
                        lost(one.unit.name, why)
                        get_run_logger().error("%s failed: %s", one.unit.name, why)
        idle.look(handed)
        if handed:
            time.sleep(LOOK_SECONDS)
    if failed:
        told = " ".join(f"{name} failed on its worker: {why}" for name, why in failed.items())
        raise StageFailed(f"{told} All else that was computed is kept; run again for what is missing.")


def _came_back(one: Handed, state: State[Any], take: Take, done: Callable[[Outcome], object]) -> str:
    """Take over what a run that ended handed back. Returns why that is not all; empty if it is all."""
    try:
        for outcome in take(one.unit, handover.results(one.run, one.unit.name), one.ready):
            one.ready.add(outcome.stage)
            done(outcome)
    except TrackerUnreachable:
        raise
    except PruneOnceError as error:
        return f"{type(error).__name__}: {error}"
    if one.ready >= set(one.unit.stages):
        return ""
    said = plain(state.message or state.name).removeprefix("Flow run encountered an exception: ").rstrip(".")
    return f"{said}."


def _state(flow_run: UUID) -> State[Any] | None:
    """The state of a run; None while the server does not answer."""
    try:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(flow_run).state
    except ObjectNotFound:
        return Cancelled(message="somebody deleted its run")
    except httpx.HTTPError:
        return None


@dataclass
class Idle:
    """How long nothing came back. Says now and then that units wait for a worker."""

    since: float = field(default_factory=time.monotonic)
    asks_in_vain: int = 0  # of MLflow's store

    def look(self, handed: list[Handed]) -> None:
        if not handed or time.monotonic() - self.since < IDLE_SECONDS:
            return
        self.since = time.monotonic()
        if waiting := [one.unit.name for one in handed if (state := _state(one.flow_run)) and state.is_scheduled()]:
            get_run_logger().warning(
                "no worker took %s yet. One with --limit 1 takes one at a time: prefect worker start --pool pruneonce",
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
