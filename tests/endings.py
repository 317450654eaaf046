"""Every way in which a run ends before its time: who is ended, and how. Each case keeps three promises.

Within SECONDS no process is left. No lock is held. The next run goes on from the last checkpoint.

CASES is the whole table. SHORT is what tests/integration/test_endings.py tries with a small stage. A `Run` is one that goes,
in a terminal of its own. It knows its processes by the folder that they work in.
"""

import contextlib
import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import wait_for

SECONDS = 10.0  # within which no child may be left
WATCHER = "pipeline.processes"  # waits for the flow's end, and then ends what is left


@dataclass(frozen=True)
class Case:
    """runner: what was typed, "flow" or "dvc". who: "runner", its "stage", its "group", or its "terminal", that closes.

    how: the signal; of a terminal it is always SIGHUP.
    """

    runner: str
    who: str
    how: signal.Signals

    def __str__(self) -> str:
        return f"{self.runner}: {self.who} {self.how.name}"


TERM, INT, HUP, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL
CASES = [
    *(Case("flow", "runner", how) for how in (TERM, INT, HUP, KILL)),
    *(Case("flow", "group", how) for how in (TERM, INT, KILL)),
    Case("flow", "terminal", HUP),
    *(Case("dvc", "runner", how) for how in (TERM, KILL)),
    *(Case("dvc", "group", how) for how in (TERM, INT, KILL)),
    *(Case("dvc", "stage", how) for how in (TERM, KILL)),
    Case("dvc", "terminal", HUP),
]
# A flow starts a stage again that the system ended: it is not over.
STARTS_AGAIN = [Case("flow", "stage", how) for how in (TERM, KILL, signal.SIGSEGV, signal.SIGBUS)]
SHORT = [
    Case("flow", "runner", TERM),
    Case("flow", "runner", KILL),
    Case("flow", "terminal", HUP),
]


@dataclass
class Run:
    """A command at work in `folder`. log: what it says."""

    process: subprocess.Popen[bytes]
    open: threading.Event  # cleared: its terminal is closed
    folder: Path
    log: Path
    alive: dict[psutil.Process, str] = field(default_factory=dict)  # when it was struck, and their commands

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def stage(self, word: str) -> psutil.Process | None:
        """The process of its stage: the word is a part of its command."""
        found = [p for p in of(self.folder) if any(word in part for part in _words(p)[1:3])]
        return found[0] if found else None

    def strike(self, case: Case, word: str) -> None:
        """End it as the case says. word: a part of the command of its stage."""
        self.alive = {process: " ".join(_words(process)[1:4]) for process in of(self.folder)}
        if case.who == "terminal":
            self.open.clear()
        elif case.who == "group":
            os.killpg(self.process.pid, case.how)
        elif case.who == "stage":
            stage = self.stage(word)
            assert stage
            stage.send_signal(case.how)
        else:
            self.process.send_signal(case.how)

    def ends(self) -> tuple[dict[str, float], list[psutil.Process]]:
        """Wait until no process is left. Returns after how many seconds each one was gone, by its command, and the processes
        that live after twice SECONDS."""
        began, gone = time.monotonic(), {}
        alive = self.alive
        while alive and time.monotonic() < began + 2 * SECONDS:
            self.process.poll()
            time.sleep(0.1)
            now = {process: alive.get(process) or " ".join(_words(process)[1:4]) for process in of(self.folder)}
            gone |= {f"{words} {p.pid}": time.monotonic() - began for p, words in alive.items() if p not in now}
            alive = now
        return gone, list(alive)


@contextlib.contextmanager
def begin(command: Sequence[str], folder: Path, log: Path, env: Mapping[str, str]) -> Iterator[Run]:
    """Start a command in a terminal of its own, and end all that is left of it."""
    terminal, inside = pty.openpty()

    def own_terminal() -> None:
        fcntl.ioctl(inside, termios.TIOCSCTTY, 0)
        for number in (signal.SIGINT, signal.SIGHUP):  # a test that runs in the background ignores them, and hands that on
            signal.signal(number, signal.SIG_DFL)

    process = subprocess.Popen(
        command,
        cwd=folder,
        env=dict(env),
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        preexec_fn=own_terminal,
    )
    os.close(inside)
    run = Run(process, threading.Event(), folder, log)
    run.open.set()
    reader = threading.Thread(target=_copy, args=(run, terminal), daemon=True)
    log.touch()
    reader.start()
    try:
        yield run
    finally:
        for left in of(folder):
            with contextlib.suppress(psutil.Error):
                left.kill()
        process.wait()
        run.open.clear()
        reader.join()


def _copy(run: Run, terminal: int) -> None:
    """Write down what appears in the terminal, and close it. While another thread reads it, it would stay open."""
    with run.log.open("ab", buffering=0) as log, contextlib.suppress(OSError):  # nobody is at its other end
        while run.open.is_set():
            if select.select([terminal], [], [], 0.1)[0]:
                log.write(os.read(terminal, 4096))
    os.close(terminal)


def of(folder: Path) -> list[psutil.Process]:
    """The processes that work in the folder, or below it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            inside = Path(process.cwd()).is_relative_to(folder) and process.pid != os.getpid()
            if inside and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def held(folder: Path) -> list[str]:
    """The files of locks in the folder that a process holds."""
    found = []
    for lock in (path for path in folder.rglob("*lock") if path.is_file()):
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(str(lock.relative_to(folder)))
    return found


def saved(folder: Path, name: str) -> Any:
    """What a stage has saved, to go on from: the steps in its scratch folders."""
    return [path for path in (folder / ".pruneonce/scratch").glob(f"{name}-*/history.jsonl") if path.stat().st_size]


def wait_until_saved(run: Run, name: str, *, seconds: float = 120) -> None:
    """Wait until the stage is in the middle of its work."""
    wait_for("a saved step", lambda: saved(run.folder, name), seconds=seconds, every=0.1, log=run.log)
