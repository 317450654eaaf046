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

from pipeline import holder
from pruneonce.errors import AlreadyRunning, PipelineError, system_failed

STAGE = "DVC_STAGE"  # DVC sets it for the command of a stage: the stage's name
FLOW = "PRUNEONCE_FLOW"  # set for all processes that a flow starts: a mark of this flow
LOOK_SECONDS = 1.0
CLOSING_SECONDS = 8.0  # after SIGTERM, for a stage to save at the end of its step and close its MLflow run
SERVER_SECONDS = 5.0  # for Prefect's server to end by itself


@contextlib.contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold `lock` while the block runs. what: a name of the process, for the message.

    Raises AlreadyRunning if another process holds it, PipelineError if it cannot be written. The kernel frees the lock of a
    process that dies; a line says so.
    """
    file, held = lock.with_name(f"{lock.name}.pid"), FileLock(lock)
    try:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            held.acquire(timeout=0)
            former = holder.read(file)
            if former and former.lives():  # somebody removed the lock's file under it
                held.release()
                raise Timeout(str(lock))
            if former:
                print(f"\nThe {what} before did not end by itself: {former}. Its lock is free; this one goes on from there.")
            holder.write(file)
        except Timeout:
            raise AlreadyRunning(f"expected no other {what}, found one{holder.of(file)}") from None
        except OSError as error:
            if system_failed(error):
                raise
            raise PipelineError(
                f"expected a folder {lock.parent} to write in, found: {error}. Make it one, and run again."
            ) from None
        yield
    finally:
        if held.is_locked:
            with contextlib.suppress(OSError):  # the folder may be read-only by now; the lock ends with the process
                file.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)  # before the release: filelock notices a removed file
            held.release()


def end_with_parent() -> None:
    """End this process by SIGTERM soon after one of its parents dies, or its terminal closes.

    A stage that was started by hand watches no parent.
    """
    hear_hangup()
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


def hear_hangup() -> None:
    """Let a terminal that closes (SIGHUP) end this process as SIGTERM does. Under nohup it goes on."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def guard() -> None:
    """Start the watcher that ends the processes of this flow after it, however it ends. A closed terminal ends it too."""
    hear_hangup()
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
    """Wait until the flow ends, which closes our standard input; then end the processes with its mark.

    Stages see by themselves that their parent died. Those that do not get SIGKILL in the end.
    """
    sys.stdin.buffer.read()
    last = time.monotonic() + LOOK_SECONDS + CLOSING_SECONDS
    found = marked(FLOW, mark)
    stages = {process for process in found if STAGE in _environment(process)}
    end(found - stages, seconds=SERVER_SECONDS)
    _, deaf = psutil.wait_procs(stages, timeout=max(0.0, last - time.monotonic()))
    _signal(deaf, signal.SIGKILL)


def marked(name: str, value: str) -> set[psutil.Process]:
    """The other processes that have a variable of this value in their environment."""
    others = (process for process in psutil.process_iter() if process.pid != os.getpid())
    return {process for process in others if _environment(process).get(name) == value}


def end(processes: Iterable[psutil.Process], *, seconds: float) -> None:
    """Send SIGTERM to the processes, and SIGKILL to those that live after these seconds."""
    alive = list(processes)
    for number in (signal.SIGTERM, signal.SIGKILL):
        _signal(alive, number)
        _, alive = psutil.wait_procs(alive, timeout=seconds)


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to the processes, a parent before its children.

    A shell whose child ends first goes on with its next command.
    """
    for process in sorted(processes, key=_age):
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _age(process: psutil.Process) -> tuple[float, int]:
    """Sorts a parent before its children. Two that started in one tick of the kernel's clock are sorted by number."""
    try:
        return process.create_time(), process.pid
    except psutil.Error:  # it has ended
        return 0.0, process.pid


if __name__ == "__main__":
    _end_marked(sys.argv[1])
