"""Who holds a lock: a small file beside it. Another process that finds the lock taken says so by it."""

import contextlib
import json
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from pruneonce.errors import plain

CLOCK_SECONDS = 10.0  # two readings of a process's start may differ by this: the system's clock is set now and then
LONGEST = 120  # characters of a command


@dataclass(frozen=True)
class Holder:
    """A process on a host. started: by the clock, for process numbers are used again. since: the same, as text."""

    pid: int
    host: str
    started: float
    since: str
    command: str

    def __str__(self) -> str:
        host = "" if self.here() else f" on {self.host}"
        return f"process {self.pid}{host} since {self.since}, {self.command}"

    def here(self) -> bool:
        """Whether it is a process of this machine: a folder may lie on a network disk."""
        return self.host == socket.gethostname()

    def lives(self) -> bool:
        """Whether it is seen on this machine. Of another one, or of a container, that is not known."""
        with contextlib.suppress(psutil.Error):
            return self.here() and abs(psutil.Process(self.pid).create_time() - self.started) < CLOCK_SECONDS
        return False


def write(file: Path) -> None:
    """Write this process down."""
    words = " ".join([Path(sys.executable).name, *sys.orig_argv[1:]])
    command = words if len(words) <= LONGEST else f"{words[:LONGEST]} ..."
    started = psutil.Process().create_time()
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started))
    this = Holder(os.getpid(), socket.gethostname(), started, since, plain(command))
    file.write_text(json.dumps(asdict(this)))


def read(file: Path) -> Holder | None:
    """The process in a file; None if there is no file, or if it is not written yet."""
    try:
        found = Holder(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if isinstance(found.pid, int) and isinstance(found.started, float) else None


def of(file: Path) -> str:
    """The end of a sentence: who holds the lock, and what to do about it."""
    found = read(file)
    if found is None:
        return " (process unknown). Wait for it."
    stop = f"kill {found.pid}" if found.here() else f"kill {found.pid} on {found.host}"
    return f": {found}. Wait for it, or stop it with {stop}."
