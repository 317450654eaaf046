"""Locks that admit one process, and the end of processes whose parent has died.

DVC starts a shell, and the shell starts the stage, perhaps through torchrun. A signal that ends DVC or the flow does not
reach the stage. So a stage watches its parents, and ends when one of them dies. Prefect's server does not do so. The flow
starts a watcher, `python -m pipeline.processes MARK`, which ends the server after the flow.
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

STAGE = "DVC_STAGE"  # DVC sets it for the command of a stage: the stage's name
FLOW = "PRUNEONCE_FLOW"  # set for all processes that a flow starts: a mark of this flow
LOOK_SECONDS = 1.0
CLOSING_SECONDS = 45.0  # for a stage to end by itself after its parent has died
SERVER_SECONDS = 5.0  # for Prefect's server to end by itself


@contextlib.contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold `lock` while the block runs. what: a name of the process, for the message.

    Raises AlreadyRunning if another process holds it, PipelineError if it cannot be written.
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
            with contextlib.suppress(OSError):  # the folder may be read-only by now; the lock ends with the process
                holder.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)  # before the release: filelock notices a removed file
            held.release()


def _stopped(holder: Path) -> str:
    """The process that holds a lock, and how to end it. holder: a file with its id, which may not be written yet."""
    try:
        pid = int(holder.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return "(process unknown). Wait for it"
    return f"(process {pid}). Wait for it, or stop it with kill {pid}"


def end_with_parent() -> None:
    """End this process by SIGTERM soon after one of its parents dies. A stage that was started by hand watches none."""
    if stage := os.environ.get(STAGE):
        threading.Thread(target=_follow, args=(_above(stage),), daemon=True).start()


def _above(stage: str) -> list[psutil.Process]:
    """The parents of this process, up to the one that runs DVC: the first without this stage in its environment."""
    found: list[psutil.Process] = []
    for process in psutil.Process().parents():
        found.append(process)
        if _environment(process).get(STAGE) != stage:
            break
    return found


def _environment(process: psutil.Process) -> dict[str, str]:
    """The environment of a process; empty if the process is another user's, or has ended."""
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
    """Whether the process lives. Process 1 and systemd adopt orphans: they count only if they run DVC themselves."""
    try:
        alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        adopts = process.pid == 1 or process.name() == "systemd"
        return alive and not (adopts and not any(word in " ".join(process.cmdline()) for word in ("python", "dvc")))
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False


def guard() -> None:
    """Start the watcher that ends the processes of this flow after it, however it ends. Stages end by themselves."""
    mark = os.environ[FLOW] = uuid.uuid4().hex
    command = [sys.executable, "-m", "pipeline.processes", mark]
    quiet = subprocess.DEVNULL
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)

    # atexit calls the last one first. So Prefect ends its server before the watcher is dismissed.
    def dismiss() -> None:
        watcher.kill()
        watcher.communicate()

    atexit.register(dismiss)


def _end_marked(mark: str) -> None:
    """Wait until the flow ends, which closes our standard input; then end the processes with its mark, but no stages."""
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
