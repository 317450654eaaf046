"""Processes in one folder: one at a time, and each ends with the process that started it.

DVC starts a shell, which starts the stage, perhaps by torchrun. A signal that ends DVC or the flow reaches none of them. So
a stage watches the processes above it. A flow starts a process that ends Prefect's server after it:
`python -m pipeline.processes MARK`.
"""

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from pruneonce.errors import AlreadyRunning, PipelineError

STAGE = "DVC_STAGE"  # what DVC calls a stage, in the environment of the stage's command
FLOW = "PRUNEONCE_FLOW"  # a mark of one flow, in the environment of all that it starts
LOOK_SECONDS = 1.0
CLOSING_SECONDS = 45.0  # what a stage whose parent is gone has to end by itself
SERVER_SECONDS = 5.0  # what Prefect's server has


@contextlib.contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold `lock` while the block runs. what: names what there may be only one of, for the message.

    Raises AlreadyRunning; PipelineError if no lock can be written.
    """
    holder, held = lock.with_name(f"{lock.name}.pid"), FileLock(lock)
    try:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            held.acquire(timeout=0)
            holder.write_text(str(os.getpid()))
        except Timeout:
            raise AlreadyRunning(f"expected no other {what}, found one {_stopped(holder)}.") from None
        except OSError as error:
            raise PipelineError(
                f"expected a folder {lock.parent} to write in, found: {error}. Make it one, and run again."
            ) from None
        yield
    finally:
        if held.is_locked:
            with contextlib.suppress(OSError):  # a folder that is read-only by now: the lock itself is of the process
                holder.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)  # while it is held: filelock sees that by the count of its names
            held.release()


def _stopped(holder: Path) -> str:
    """Which process holds a lock, and how to end it. `holder` is written after the lock is taken, removed before."""
    try:
        pid = int(holder.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return "(process unknown). Wait for it"
    return f"(process {pid}). Wait for it, or stop it with kill {pid}"


def end_with_parent() -> None:
    """End this process, as SIGTERM does, soon after one of those that started it has died. Started by hand: nothing."""
    if stage := os.environ.get(STAGE):
        threading.Thread(target=_follow, args=(_above(stage),), daemon=True).start()


def _above(stage: str) -> list[psutil.Process]:
    """The processes above this one, up to the one that runs DVC: the first without this stage in its environment."""
    found: list[psutil.Process] = []
    for process in psutil.Process().parents():
        found.append(process)
        if _environment(process).get(STAGE) != stage:
            break
    return found


def _environment(process: psutil.Process) -> dict[str, str]:
    """Empty if it is another user's, or gone."""
    try:
        return process.environ()
    except psutil.Error:
        return {}


def _follow(above: list[psutil.Process]) -> None:
    while all(_there(process) for process in above):
        time.sleep(LOOK_SECONDS)
    with contextlib.suppress(OSError):  # the terminal may be gone as well
        print("\nWhat started this stage has died; the stage ends too.", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(CLOSING_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _there(process: psutil.Process) -> bool:
    """Whether the process lives. One that adopts orphans (process 1, systemd) counts only if it runs DVC itself."""
    try:
        alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        adopts = process.pid == 1 or process.name() == "systemd"
        return alive and not (adopts and not any(word in " ".join(process.cmdline()) for word in ("python", "dvc")))
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False


def guard() -> None:
    """Have all processes that this one starts from now on end with it, however it ends. Stages do so by themselves."""
    mark = os.environ[FLOW] = uuid.uuid4().hex
    command = [sys.executable, "-m", "pipeline.processes", mark]
    quiet = subprocess.DEVNULL
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)

    # A process that ends well ends the others itself, before this: the last one registered goes first.
    def dismiss() -> None:
        watcher.kill()
        watcher.communicate()

    atexit.register(dismiss)


def _end_marked(mark: str) -> None:
    """Wait for the end of the process that holds the other end of our standard input, then end those that have its mark."""
    sys.stdin.buffer.read()
    environments = {process: _environment(process) for process in psutil.process_iter() if process.pid != os.getpid()}
    marked = [p for p, environment in environments.items() if environment.get(FLOW) == mark and STAGE not in environment]
    end(marked, seconds=SERVER_SECONDS)


def end(processes: Iterable[psutil.Process], *, seconds: float) -> None:
    """Send SIGTERM to the processes, and SIGKILL to those that live after these seconds."""
    alive = list(processes)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        _, alive = psutil.wait_procs(alive, timeout=seconds)


if __name__ == "__main__":
    _end_marked(sys.argv[1])
