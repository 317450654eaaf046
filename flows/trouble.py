"""What DVC and Prefect raise, as one line that says what to do."""

import os
import re
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.lock import FAILED_TO_LOCK_MESSAGE, LockError
from dvc.rwlock import RWLockFileCorruptedError, RWLockFileFormatError
from dvc.stage.exceptions import StageCmdFailedError
from dvc_objects.errors import ObjectFormatError
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.context import TaskRunContext
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings
from scmrepo.exceptions import SCMError
from sqlalchemy.engine import make_url

from pipeline.tracking.lock import FOLDERS
from pruneonce.errors import AlreadyRunning, PipelineError, PruneOnceError, disk_is_full

ANSWER_SECONDS = 5.0  # within which a server of Prefect's says that it is there
NO_SERVER = ("ephemeral Prefect API server", "Unable to find an available port", "Failed to reach API at")
RETRY_SECONDS = 5.0  # before a stage starts again: a disk that was lost may be back, other programs' memory free
BASE_SECONDS = 1.0  # for another process that holds Prefect's database
FILES = ("params.yaml", *(str(folder / name) for folder in FOLDERS for name in ("dvc.yaml", "dvc.lock")))
CORRECT = "Correct it: git diff shows the changes, git checkout -- FILE undoes them"  # of files that git has
REACH = "See that the remote answers, and that this machine has its keys"


class StageFailed(PruneOnceError):
    """A stage failed. Its own output is above."""


class StageEnded(StageFailed):
    """The system ended a stage. Nothing says that it would fail again."""


def may_start_again(task: Any, run: Any, state: Any) -> bool:
    """A condition of Prefect's for another try of a stage."""
    return isinstance(state.data, StageEnded)


def status(error: BaseException) -> int:
    """The exit status of a stage's shell, which DVC tells in its message alone; 0 for another error of DVC's."""
    found = re.search(r", exited with (-?\d+)$", str(error)) if isinstance(error, StageCmdFailedError) else None
    return int(found[1]) if found else 0


def ended(stage: str, how: str) -> StageEnded:
    """The error of a stage that the system ended. If Prefect starts it again, a line of the log says so."""
    context = TaskRunContext.get()
    tried, tries = (context.task_run.run_count, context.task.retries + 1) if context else (1, 1)
    found = f"{stage} was ended by the system: {how}."
    if tried < tries:
        again = (
            f"It starts again in {RETRY_SECONDS:.0f} s, and goes on from its last checkpoint: try {tried + 1} of {tries}."
        )
        get_run_logger().warning("%s %s", found, again)
        return StageEnded(found)
    times = "once" if tried == 1 else f"{tried} times, and it was ended each time"
    return StageEnded(
        f"{found} It was tried {times}. Its checkpoints and all finished stages are kept. See what ended it (dmesg says "
        "whether memory ran out), and run again to go on."
    )


@contextmanager
def plainly(goal: str, remedy: str = CORRECT) -> Iterator[None]:
    """Turn errors of DVC, git and the file system into AlreadyRunning or PipelineError.

    goal: names what is attempted. remedy: what to do about an error that does not say so itself.
    """
    try:
        yield
    except LockError as error:
        raise busy(error) from None
    except (DvcException, SCMError, ObjectFormatError, OSError, sqlite3.Error) as error:
        raise PipelineError(
            f"expected {goal}, found: {messages(error)}. {_remedy(error) or remedy}, and run again."
        ) from None


def busy(error: LockError) -> AlreadyRunning:
    """DVC names who uses a path; who holds its lock stands in that file, which the kernel frees when the process ends."""
    found = messages(error)
    if found == FAILED_TO_LOCK_MESSAGE.rstrip("."):
        found = f"one that holds .dvc/tmp/lock{_holders()}. Wait for it, and run again"
    return AlreadyRunning(f"expected no command of DVC at work in this folder, found: {found}")


def _holders() -> str:
    """The processes that the locks of DVC name."""
    named = ""
    for folder in FOLDERS:
        with suppress(OSError, ValueError, psutil.Error):
            process = psutil.Process(int((folder / ".dvc/tmp/lock").read_text()))
            if process.pid == os.getpid():
                continue
            since = time.strftime("%H:%M:%S", time.localtime(process.create_time()))
            named += f", process {process.pid} since {since}: {' '.join(process.cmdline())[:120]}"
    return named


def messages(error: BaseException) -> str:
    """Its message and those of its causes: the message of DVC is often only `validation failed`."""
    found: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        found += [text for text in [str(cause).strip().rstrip(".")] if not any(text in other for other in found)]
        cause = cause.__cause__
    return ": ".join(found) or type(error).__name__


def _remedy(error: BaseException) -> str:
    """What to do about an error that says so itself; empty for another one."""
    if disk_is_full(error):
        return "Free some space"
    if conflicts := [name for name in FILES if _conflict(Path(name))]:
        names = " ".join(conflicts)
        return f"A merge conflict is in {names}: take one side, e.g. git checkout --ours -- {names}"
    if isinstance(error, RWLockFileCorruptedError | RWLockFileFormatError):
        return "Remove it when no command of DVC runs: rm .dvc/tmp/rwlock"
    if isinstance(error, NotDvcRepoError):
        return "Run inside the repository; what git has of it comes back with git checkout -- .dvc"
    return ""


def _conflict(path: Path) -> bool:
    return path.is_file() and re.search(rb"^<<<<<<< ", path.read_bytes(), re.MULTILINE) is not None


def check_prefect() -> None:
    """Raises PipelineError if the server of PREFECT_API_URL does not answer, or Prefect's home cannot be: it would try for
    minutes, and tell by a traceback."""
    settings = get_current_settings()
    if settings.api.url is None:
        with plainly(f"the folder PREFECT_HOME={settings.home}", "Set another one"):
            settings.home.mkdir(parents=True, exist_ok=True)
        given = settings.server.database.connection_url
        address = make_url(given.get_secret_value() if given else "sqlite://")
        if address.get_backend_name() == "sqlite" and address.database and ":" not in address.database:
            _check_base(Path(address.database))  # prefect.db in Prefect's home, if no other one is set
        return
    try:
        once = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})
        with once, get_client(httpx_settings={"timeout": ANSWER_SECONDS}, sync_client=True) as client:
            error = client.api_healthcheck()
    except Exception as raised:
        error = raised
    if error is not None:
        raise unreachable(error)


def _check_base(file: Path) -> None:
    """Raises PipelineError if what is there is no database: Prefect's server would fail at it, by one traceback a try."""
    if not os.path.lexists(file):
        return
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", BASE_SECONDS, uri=True)) as base:
            base.execute("SELECT count(*) FROM sqlite_master").fetchone()  # reads the first pages, not all
    except sqlite3.Error as error:
        if "is locked" in str(error):  # by a server of another run: Prefect waits for it
            return
        raise PipelineError(
            f"expected Prefect's database in {file}, found: {error}. It holds nothing but how former runs went: move it "
            "away and run again."
        ) from None


@contextmanager
def one_line() -> Iterator[None]:
    """End a flow's command with one line and exit code 1: for an error of ours, and for a server that does not answer."""
    try:
        yield
    except PruneOnceError as error:
        sys.exit(f"\n{type(error).__name__}: {error}")
    except (httpx.HTTPError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not no_server(error):
            raise
        sys.exit(f"\nPipelineError: {unreachable(error)}")


def no_server(error: RuntimeError) -> bool:
    """Whether this is how Prefect says that it has no server: one of its own did not start, or went away."""
    return any(text in str(error) for text in NO_SERVER)


def unreachable(error: BaseException) -> PipelineError:
    url = get_current_settings().api.url
    place, other = (
        (url, "Start it, or unset PREFECT_API_URL for one") if url else ("this machine", "Run again for another one")
    )
    return PipelineError(
        f"expected a Prefect server at {place}, found: {type(error).__name__}: {error}. {other} that lives as long as the "
        "run. Finished stages are kept."
    )
