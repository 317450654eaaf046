"""Give units of work to the workers of the pool, and wait for them.

Each unit is a run of the deployment `branch/branch`. All start at once, and any worker takes the next. A worker that died
makes its run Crashed; then the unit is handed out again. One that fails is reported at the end, and the others are kept.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, cast
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling

from flows import commits, stopping
from flows.failures import Failures, in_words
from flows.repro import Outcome
from flows.units import RanOn, Unit
from pipeline.tracking import address, handover
from pruneonce.errors import TrackerUnreachable, plain

DEPLOYMENT = "branch/branch"
LOOK_SECONDS = 2.0
ASK_AGAIN = 30  # times, for results in a store that does not answer; each takes some seconds
IDLE_SECONDS = 60.0  # after which a unit that nobody took is worth a line
HELD_SECONDS = 600.0  # for another worker, where runs that hand out work hold all there are
Take = Callable[[Unit, Mapping[str, Mapping[str, Any]], Collection[str]], list[RanOn]]


@dataclass
class Handed:
    """A unit that a worker has, or will take.

    run: the MLflow run with its artifacts. name: of the unit in it; another coordinator may call the same work otherwise.
    ready: its stages that came back. tries: how often it may be repeated.
    own: whether this coordinator started the flow run; that of another one is not ours to cancel.
    """

    unit: Unit
    run: str
    name: str
    flow_run: UUID
    ready: set[str]
    tries: int
    own: bool = True
    asks_in_vain: int = 0


def hand_out(unit: Unit, run: str, *, ready: set[str], tries: int, name: str | None = None) -> Handed:
    """Start a run of the deployment; one that is at the same work already is waited for instead.

    name: of the unit in the MLflow run, if that is another coordinator's; default: the unit's own.
    """
    if known := _at_work(unit):
        get_run_logger().info("%s: run %s of an earlier coordinator is at it; it is waited for", unit.name, known.id)
        return Handed(unit, str(known.parameters["run"]), str(known.parameters["name"]), known.id, ready, tries, own=False)
    name = name or unit.name
    handover.give(run, name, unit.key, replace(unit, name=name).as_json())
    started = run_deployment(
        DEPLOYMENT,
        parameters={"run": run, "name": name, "store": store_address()},
        job_variables={"env": {commits.COMMIT: unit.team.commit, commits.REPOSITORY: unit.team.repository}},
        flow_run_name=unit.name,
        tags=[_tag(unit)],
        timeout=0,
    )
    return Handed(unit, run, name, cast(FlowRun, started).id, ready, tries)


def _tag(unit: Unit) -> str:
    return f"work-{unit.key}"


def store_address() -> str | None:
    """MLflow's address for workers that have none of their own; None if it holds a password, for Prefect shows it."""
    uri = address.uri()
    if address.sqlite_file(uri):
        return address.everywhere()
    return uri if plain(uri) == uri else None


def _at_work(unit: Unit) -> FlowRun | None:
    """A run that is at this very work: its coordinator was killed, or is another folder."""
    wanted = FlowRunFilter.model_validate(
        {"tags": {"all_": [_tag(unit)]}, "state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}}}
    )
    with get_client(sync_client=True) as client:
        return next(iter(client.read_flow_runs(flow_run_filter=wanted, limit=1)), None)


def collect(handed: list[Handed], take: Take, done: Callable[[Outcome], object], failures: Failures | None = None) -> None:
    """Wait for all units, and take over what comes back, each as soon as it does.

    failures: of units that were not handed out. Raises StageFailed at the end if one failed.
    """
    failures = failures or Failures()
    idle = Idle()
    while handed:
        for one in list(handed):
            state = _state(one.flow_run)
            if state is None or not state.is_final():
                continue
            try:
                why, again = _ended(one, state, take, done)
            except Exception as error:  # MLflow or Prefect is away: it is asked again
                one.asks_in_vain += 1
                if one.asks_in_vain <= ASK_AGAIN:
                    continue
                why, again = in_words(error), None
            handed.remove(one)
            if again:
                handed.append(again)
            elif why:
                failures.note(one.unit.name, why)
        for one, why in idle.look(handed):
            handed.remove(one)
            failures.note(one.unit.name, why, how="was not computed")
        if handed:
            time.sleep(LOOK_SECONDS)
    failures.check()


def _ended(one: Handed, state: State[Any], take: Take, done: Callable[[Outcome], object]) -> tuple[str, Handed | None]:
    """Take over what a run that ended handed back. Returns why that is not all, and the unit if it was handed out again.

    Raises TrackerUnreachable, and what Prefect raises, for a server that may answer later.
    """
    why = _came_back(one, state, take, done)
    crashed = state.is_crashed() and one.tries > 0
    if not why or not (crashed or (state.is_cancelled() and not one.own)):
        return why, None
    handover.close_runs({one.unit.parent, one.run}, one.unit.stages)  # the dead worker's machine may never do it
    # In the same run, under the same name: there the next worker finds the stages that came back.
    again = hand_out(one.unit, one.run, ready=one.ready, tries=one.tries - crashed, name=one.name)
    how = "its worker died" if crashed else "its coordinator cancelled it"
    get_run_logger().warning("%s: %s: %s Another worker takes it.", one.unit.name, how, why)
    return why, again


def _came_back(one: Handed, state: State[Any], take: Take, done: Callable[[Outcome], object]) -> str:
    """Take over what is there. Returns why that is not all; empty if it is all. Raises TrackerUnreachable."""
    try:
        for outcome in take(one.unit, handover.results(one.run, one.name), one.ready):
            one.ready.add(outcome.stage)
            done(outcome)
    except TrackerUnreachable:
        raise
    except Exception as error:
        return in_words(error)
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
    except Exception:  # of the network, of Prefect's client: it must not end the other units
        return None


@dataclass
class Idle:
    """Says now and then that units wait for a worker, and gives them up where none can come."""

    since: float = field(default_factory=time.monotonic)  # when that was last looked at, or the wait began
    held_since: float | None = None  # since when all units wait, and every place of the pool is held by such runs

    def look(self, handed: list[Handed]) -> list[tuple[Handed, str]]:
        """Returns the units that are given up, and why: runs like this one hold all workers that there are."""
        if not handed or time.monotonic() - self.since < IDLE_SECONDS:
            return []
        self.since = time.monotonic()
        waiting = [one for one in handed if (state := _state(one.flow_run)) and state.is_scheduled()]
        if waiting:
            get_run_logger().warning(
                "no worker took %s yet. One with --limit 1 takes one at a time: prefect worker start --pool pruneonce",
                ", ".join(one.unit.name for one in waiting),
            )
        if len(waiting) < len(handed) or not _held():
            self.held_since = None
            return []
        self.held_since = self.held_since or time.monotonic()
        if time.monotonic() - self.held_since < HELD_SECONDS:
            return []
        cancel(waiting)
        why = (
            f"expected a worker within {HELD_SECONDS / 60:.0f} minutes that no run like this one keeps busy, found none. "
            "Start one more: prefect worker start --pool pruneonce; or give one a higher --limit. Run again."
        )
        return [(one, why) for one in waiting]


def _held() -> bool:
    """Whether this run is on a worker, and all that runs in the pool hands out work and waits, as it does. Then nobody
    computes. False while the server does not answer."""
    if not os.environ.get("PREFECT__WORKER_NAME"):
        return False  # a person's run: the workers may be started at any time
    with suppress(Exception), get_client(sync_client=True) as client:
        pool = client.read_deployment_by_name(DEPLOYMENT).work_pool_name
        at_work = client.read_flow_runs(
            work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [pool]}}),
            flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": ["PENDING", "RUNNING"]}}}),
        )
        return bool(at_work) and all(run.parameters.get("workers") for run in at_work)  # of `team`, `spread` and `sweep`
    return False


def cancel(handed: list[Handed]) -> None:
    """Cancel the runs of units that this coordinator started, as far as the server answers."""
    for one in [one for one in handed if one.own]:
        with suppress(Exception), get_client(sync_client=True) as client:
            client.set_flow_run_state(one.flow_run, Cancelling())


@contextmanager
def cancelled_at_the_end(closing: Callable[[], object] = lambda: None) -> Iterator[list[Handed]]:
    """The units that are handed out inside. If this run is stopped, theirs are cancelled, but not those of another one.

    closing: what else is then to be done, before the process may end.
    """
    handed: list[Handed] = []
    listens, main = stopping.listens(), threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.default_int_handler) if main else None
    try:
        yield handed
    except BaseException as error:
        cancel(handed)
        with suppress(Exception):
            closing()
        if listens and isinstance(error, KeyboardInterrupt):
            stopping.leave()
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
