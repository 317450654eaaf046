"""What killed processes of DVC left in its list of paths in use: struck out where it is sure that nobody uses them.

DVC strikes out a process that has ended by itself. It does not see that another program has the number now, and it does not
start with a damaged list. Its other locks are the kernel's, which frees them when their process ends.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from dvc.lock import LockError, make_lock
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK, SCHEMA
from voluptuous import Invalid

from pipeline import processes
from pipeline.holder import CLOCK_SECONDS
from pipeline.tracking.lock import FOLDERS

ROOT = "DVC_ROOT"  # DVC sets it for the command of a stage: the folder of the project


def clear() -> list[str]:
    """Strike out what nobody uses, in every DVC project of this folder. Returns a line for each change."""
    said: list[str] = []
    for folder in FOLDERS:
        temporary = folder / ".dvc/tmp"
        if (temporary / RWLOCK_FILE).exists():
            with suppress(LockError, OSError), _held(temporary / RWLOCK_LOCK):
                said += _clear(temporary / RWLOCK_FILE, folder)
    return said


def _held(lock: Path) -> Any:
    return make_lock(str(lock), tmp_dir=str(lock.parent))


def _clear(file: Path, folder: Path) -> Iterator[str]:
    """The same for one list, which nobody changes meanwhile."""
    try:
        listed = SCHEMA(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, Invalid):
        if not _at_work(folder):
            file.unlink()
            yield f"{file} was damaged by a command of DVC that was killed. No DVC is at work here: it was removed."
        return
    written = file.stat().st_mtime
    users = [*listed["write"].values(), *(user for some in listed["read"].values() for user in some)]
    gone = {user["pid"] for user in users if _another_program(user["pid"], user["cmd"], written)}
    if not gone:
        return
    listed["write"] = {path: user for path, user in listed["write"].items() if user["pid"] not in gone}
    kept = {path: [user for user in some if user["pid"] not in gone] for path, some in listed["read"].items()}
    listed["read"] = {path: some for path, some in kept.items() if some}
    part = file.with_suffix(".part")
    part.write_text(json.dumps(listed), encoding="utf-8")
    part.replace(file)
    for user in {user["pid"]: user for user in users if user["pid"] in gone}.values():
        yield (
            f"{file}: process {user['pid']} ({user['cmd']}) was killed, and its number is another program's now. What it "
            "had in use is free."
        )


def _another_program(pid: int, command: str, written: float) -> bool:
    """Whether a process is surely not the one that wrote itself into a list that was last changed at `written`.

    command: as it stands there. A process that began later is another one, unless the clock jumped: then it has the same
    command.
    """
    if pid == os.getpid():  # nothing of ours is in the list yet
        return True
    try:
        process = psutil.Process(pid)
        words = process.cmdline()
        if process.create_time() > written + CLOCK_SECONDS and not set(command.split()[1:]) <= set(words):
            return True
        return bool(words) and not any("dvc" in word or "python" in word for word in (*words, process.name()))
    except psutil.Error:  # it has ended, and DVC strikes it out; or it is hidden, and nothing is sure
        return False


def _at_work(folder: Path) -> bool:
    """Whether a process of this machine runs a command of DVC in the project. While a stage runs, DVC holds no lock."""
    try:
        with _held(folder / ".dvc/tmp/lock"):
            return bool(processes.marked(ROOT, str(folder.absolute())) | processes.marked(ROOT, str(folder.resolve())))
    except LockError:
        return True
