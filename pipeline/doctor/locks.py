"""Locks and leftovers: which are held by a living process, which hold up the next run, which are harmless.

Linux lists who holds a lock in /proc/locks. So nothing is locked here, and no run is disturbed.
"""

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import psutil

from pipeline import scratch
from pruneonce.doctor.findings import NOTE, OK, PROBLEM, Finding

RUN = Path(".pruneonce/run.lock")
DVC, DVC_PATHS = Path(".dvc/tmp/lock"), Path(".dvc/tmp/rwlock")
TRACKING = Path("mlflow.db.lock")
HELD = {RUN: "a run of this folder is going", DVC: "DVC is at work", TRACKING: "MLflow's database is being made"}


def held() -> Iterator[Finding]:
    """The locks that a process holds now, and those that a process which was killed left behind."""
    holders = holder_of()
    busy = [(lock, holders[_inode(lock)]) for lock in HELD if _inode(lock) in holders]
    for lock, pid in busy:
        yield Finding("locks", NOTE, f"{HELD[lock]} ({_named(pid)} holds {lock})", "Wait for it, or stop it.")
    if RUN.exists() and RUN not in dict(busy):
        yield Finding("locks", OK, f"{RUN} is of a run that was killed: the next run takes it")
    elif not busy:
        yield Finding("locks", OK, "none is held")


def holder_of(table: Path = Path("/proc/locks")) -> dict[str, int]:
    """Inode of a file that is locked, with its device -> the process that holds the lock; 0: of another container."""
    found = {}
    for line in table.read_text().splitlines():
        words = line.split()  # 1: FLOCK ADVISORY WRITE 31350 fe:00:3678924 0 EOF; a process that waits has -> behind 1:
        if len(words) >= 6 and words[1] != "->":
            major, minor, inode = words[5].split(":")
            found[f"{int(major, 16)}:{int(minor, 16)}:{inode}"] = int(words[4])
    return found


def _inode(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}:{status.st_ino}"


def _named(pid: int) -> str:
    return f"process {pid}" if pid > 0 else "a process of another container"


def dvc_paths() -> Iterator[Finding]:
    """DVC's list of the paths that its processes read and write. DVC itself strikes out processes that have ended."""
    try:
        listed = json.loads(DVC_PATHS.read_text(encoding="utf-8"))
        entries = [(path, info) for path, info in listed.get("write", {}).items()]
        entries += [(path, info) for path, infos in listed.get("read", {}).items() for info in infos]
        processes = {int(info["pid"]): info["cmd"] for _, info in entries}
    except FileNotFoundError:
        return
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        advice = f"If no DVC is running: rm {DVC_PATHS}"
        yield Finding("dvc locks", PROBLEM, f"{DVC_PATHS} is damaged, and DVC will not start: {error}", advice)
        return
    for pid, command in processes.items():
        paths = [path for path, info in entries if info["pid"] == pid]
        said = f"{paths[0]}{f' and {len(paths) - 1} more' * (len(paths) > 1)}"
        if not psutil.pid_exists(pid):
            yield Finding("dvc locks", OK, f"{said}: of process {pid}, which has ended; DVC strikes it out by itself")
        elif _is_dvc(pid):
            yield Finding("dvc locks", NOTE, f"{said}: in use by process {pid} ({command})", "Wait for it, or stop it.")
        else:
            advice = f"DVC would wait for it. If no DVC is running: rm {DVC_PATHS}"
            yield Finding("dvc locks", PROBLEM, f"{said}: of process {pid}, whose number another program has now", advice)


def _is_dvc(pid: int) -> bool:
    """Whether it may be a process of DVC or of a flow; also if that cannot be known."""
    try:
        return any("dvc" in word or "python" in word for word in psutil.Process(pid).cmdline())
    except psutil.Error:
        return True


def leftovers() -> Iterator[Finding]:
    """What runs that did not end have saved, to continue from, and what MLflow's database was to become."""
    own = [path for path in sorted(scratch.root().glob("*")) if scratch.OWN.fullmatch(path.name) and path.is_dir()]
    kept = [path for path in own if not (path / scratch.DONE).exists()]
    if kept:
        stages = sorted({path.name.rpartition("-")[0] for path in kept})
        size = sum(file.stat().st_size for path in kept for file in path.rglob("*") if file.is_file())
        advice = f"They continue when they run again. To start from step 0: rm -r {shlex.join(map(str, kept))}"
        yield Finding("unfinished", NOTE, f"{', '.join(stages)}: {size / 1e6:,.0f} MB in {scratch.root()}", advice)
    part = TRACKING.with_suffix(".part")
    if part.exists() and _inode(TRACKING) not in holder_of():
        yield Finding("unfinished", OK, f"{part} is of a process that was killed: the next run replaces it")
