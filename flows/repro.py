"""One DVC stage as one Prefect task. DVC is the only cache, so Prefect's is off."""

import logging
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from dvc.exceptions import DvcException, ReproductionError
from dvc.lock import LockError
from dvc.repo import Repo
from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext

from flows import keeping, stopping, trouble
from flows.trouble import StageFailed
from pipeline import endings, processes
from pipeline.lineage import why
from pipeline.stopping import RAN
from pipeline.tracking.lock import command, project, short
from pruneonce.errors import PruneOnceError, plain

HEAR_SECONDS = 2.0  # after Ctrl-C: who does not end within this may not have heard it, and gets SIGTERM


@dataclass(frozen=True)
class Outcome:
    """The result of a stage, the reason, and its wall time in seconds."""

    stage: str
    result: Literal["ran", "restored from cache", "unchanged"]
    why: str
    seconds: float


@task(
    task_run_name="{stage}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retry_condition_fn=trouble.may_start_again,
    retry_delay_seconds=trouble.RETRY_SECONDS,
)
def repro(stage: str) -> Outcome:
    """Bring `stage` up to date; its dependencies must already be. Raises StageFailed if its command fails, or DVC keeps less
    than it recorded; StageEnded if the system ended it, for which it may have `retries` (with_options)."""
    began, home = time.monotonic(), str(project(stage))
    with trouble.plainly(f"DVC to bring {stage} up to date"), tempfile.TemporaryDirectory() as folder:
        with Repo(home) as repo:
            changes = repo.status(targets=[stage], with_deps=False).get(stage, [])
            if not changes:
                return Outcome(stage, "unchanged", "as in dvc.lock", time.monotonic() - began)
            if keeping.store(repo, stage, changes):
                return Outcome(stage, "unchanged", "now in DVC's cache too", time.monotonic() - began)
        causes = reasons(stage, changes)
        get_run_logger().info("starts: %s", shortened(causes))
        _show(stage, causes)
        mark = Path(folder) / "ran"
        with keeping.transfers() as failures:
            _run(stage, mark)
        ran = mark.exists()
        with Repo(home) as repo:  # a new one: the first one has the lock file as it was
            keeping.check(repo, stage, failures)
            if ran:
                keeping.remember(repo, stage)
            else:
                keeping.check_restored(repo, stage)
    return Outcome(stage, "ran" if ran else "restored from cache", shortened(causes), time.monotonic() - began)


def _run(stage: str, mark: Path) -> None:
    """Let DVC run the stage. mark: a file that exists afterwards if the stage did its work. Raises StageFailed."""
    notes = mark.with_name("notes")
    os.environ |= {RAN: str(mark), endings.NOTES: str(notes)}
    try:
        _reproduce(stage)
    except KeyboardInterrupt:
        if not stopping.listens():
            raise
        stopping.leave()
    except ReproductionError as error:
        cause = error.__cause__ or error
        if isinstance(cause, LockError):
            raise trouble.busy(cause) from None
        if mark.exists():
            commit = command("commit --force", stage)
            raise StageFailed(
                f"expected DVC to record {stage}, which ran to its end, found: {trouble.messages(cause)}. Its outs are "
                f"in the workspace. Correct that, then {commit}, and run again; else it is computed again."
            ) from None
        if how := endings.by_system(trouble.status(cause), notes.read_text() if notes.exists() else ""):
            raise trouble.ended(stage, how) from None
        raise StageFailed(f"{stage} failed ({cause}). Its own output is above; finished stages are kept.") from None
    except DvcException as error:
        raise StageFailed(f"DVC could not run {stage}: {error}. Finished stages are kept.") from None
    finally:
        del os.environ[RAN], os.environ[endings.NOTES]


def _reproduce(stage: str) -> None:
    """Run the stage in a thread: in the main thread DVC ignores Ctrl-C while a command runs, and its end may take long."""

    def work() -> None:
        # DVC's run cache takes paths relative to the working folder, so this must be the project's.
        with chdir(project(stage)), Repo() as repo:
            repo.reproduce(short(stage), single_item=True)

    # The thread is waited for: DVC gives back its locks, and a stage that ended just before Ctrl-C is recorded.
    with ThreadPoolExecutor(1) as pool, _hear_ctrl_c(), _end_children():
        pool.submit(work).result()


def reasons(stage: str, changes: list[Any]) -> list[str]:
    """Why DVC runs the stage, e.g. "parameter sparsify.sparsity: 0.85 -> 0.9". changes: DVC's status of it.

    In DVC's own words where dvc.yaml has what only DVC reads: the stage runs all the same.
    """
    states: list[tuple[str, str, str]] = []
    for change in changes:
        if isinstance(change, str):  # changed command
            states.append(("command", "", change))
            continue
        for kind, entries in change.items():
            for name, state in entries.items():
                if isinstance(state, dict):  # params: {"params.yaml": {"sparsify": "modified"}}
                    states += [("param", key, how) for key, how in state.items()]
                else:
                    states.append((kind.removeprefix("changed ").removesuffix("s"), name, state))
    try:
        said = why.told(stage, states)
    except Exception:  # of any syntax of DVC's: an explanation must end no run
        said = [" ".join(filter(None, state)) for state in states]
    return said or ["DVC does not say why"]


def shortened(causes: list[str]) -> str:
    """The first reason, and how many more there are."""
    first, *more = causes
    return f"{first} and {len(more)} more" if more else first


def _show(stage: str, causes: list[str]) -> None:
    """Keep the reasons as an artifact of the task run, if there is one.

    Its key takes small letters, digits and hyphens alone.
    """
    if TaskRunContext.get() is None:
        return
    key = re.sub("[^a-z0-9]+", "-", f"why-{stage}".lower()).strip("-")
    lines = [f"{stage} runs because of:", "", *(f"- {plain(cause)}" for cause in causes)]
    create_markdown_artifact("\n".join(lines), key=key, description=f"Why {stage} runs")


@contextmanager
def _hear_ctrl_c() -> Iterator[None]:
    """Raise KeyboardInterrupt for Ctrl-C: the stage is ended, and waited for, before the flow leaves."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _end_children() -> Iterator[None]:
    """If the stage fails or the flow is stopped, end the processes that were started inside, but not Prefect's server.

    Those that lost their parent are found by what the flow set in their environment.
    """
    own, notes = psutil.Process(), os.environ.get(endings.NOTES, "")
    before = set(own.children(recursive=True))
    try:
        yield
    except BaseException as error:
        started = set(own.children(recursive=True)) - before
        started |= processes.marked(endings.NOTES, notes) if notes else set()
        if isinstance(error, KeyboardInterrupt):  # it reached them as well, unless it was sent to the flow alone
            _, started = psutil.wait_procs(started, timeout=HEAR_SECONDS)
        processes.end(started, seconds=processes.CLOSING_SECONDS)
        raise


def quiet_logs() -> None:
    """Silence DVC's lines and Prefect's lines on success: they repeat the flow's own."""
    logging.getLogger("dvc").setLevel(logging.WARNING)
    _filter_prefect(_without_success)


def say_errors_once() -> None:
    """Silence Prefect's lines on our errors. It logs each for the task, the flow and their states; the command prints it."""
    _filter_prefect(_without_failure)


def _filter_prefect(lines: Callable[[logging.LogRecord], bool]) -> None:
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(lines)


def _without_success(record: logging.LogRecord) -> bool:
    """A log filter: drops the lines on success and on a try that follows, and the tracebacks of our errors."""
    if _is_ours(record):
        record.exc_info = None
    said = record.getMessage()
    follows = said.startswith("Task run failed with ") and " - Retry " in said
    return not (said.startswith("Finished in state Completed") or follows)


def _without_failure(record: logging.LogRecord) -> bool:
    """A log filter: drops our errors, and the lines on failure."""
    return not _is_ours(record) and not record.getMessage().startswith("Finished in state Failed")


def _is_ours(record: logging.LogRecord) -> bool:
    return bool(record.exc_info and isinstance(record.exc_info[1], PruneOnceError))
