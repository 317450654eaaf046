"""The scratch folder: what an unfinished stage has saved, in a folder of its own, until the stage ends.

A stage's folder is named after all that determines the stage. So the same stage goes on from it, on any machine that shares
the scratch folder, and no other stage reads it. It stays when the stage has ended, until DVC has recorded what came out: a
process of DVC that is killed in between would have the whole stage computed again.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

PLACE = "PRUNEONCE_SCRATCH"  # environment variable: another folder, such as one outside of a clone that is made for one run
DEFAULT = Path(".pruneonce/scratch")  # ignored by git, safe to delete
DONE = "done"  # file in a folder: its stage has ended, with these outs
DAY_SECONDS = 86400.0


def root() -> Path:
    """The scratch folder of this machine."""
    return Path(os.environ.get(PLACE) or DEFAULT)


def of(stage: str, params: Mapping[str, Any], inputs: Mapping[str, str]) -> Path:
    """The folder of a stage. params: its parameters, dotted key -> value; inputs: path -> md5 of its data and code."""
    processes = os.environ.get("WORLD_SIZE", "1")
    made_of = repr((sorted(params.items()), sorted(inputs.items()), processes))
    return root() / f"{stage}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"


def lock_of(folder: Path) -> Path:
    """The lock that the process holds which computes the stage of this folder."""
    return folder.with_name(f"{folder.name}.lock")


def finish(folder: Path, outs: Mapping[str, str]) -> None:
    """Note that the stage has ended. outs: path -> md5, as DVC will record them."""
    with suppress(OSError):  # then it is as if the stage had not ended
        (folder / DONE).write_text(json.dumps(outs))


def begin(folder: Path) -> None:
    """Note that the stage is at work, perhaps again."""
    (folder / DONE).unlink(missing_ok=True)


def remove_recorded(outs_of: Callable[[], Mapping[str, Mapping[str, str]]]) -> None:
    """Remove the folders of stages that have ended, and whose outs DVC has recorded. outs_of: stage -> path -> md5."""
    done = list(root().glob(f"*/{DONE}"))
    recorded = outs_of() if done else {}
    for file in done:
        with suppress(OSError, ValueError, Timeout), FileLock(lock_of(file.parent), timeout=0):
            if recorded.get(file.parent.name.rpartition("-")[0]) == json.loads(file.read_text()):
                shutil.rmtree(file.parent, ignore_errors=True)
                lock_of(file.parent).unlink(missing_ok=True)


def remove_old(days: float, *, except_for: Path) -> Iterator[Path]:
    """Remove the folders that nobody wrote to for so many days, unless a process holds their lock; yield their names."""
    for folder in sorted(root().iterdir()) if root().is_dir() else ():
        if folder == except_for or not folder.is_dir() or _age_seconds(folder) < days * DAY_SECONDS:
            continue
        held = FileLock(lock_of(folder))
        try:
            with held.acquire(timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
                lock_of(folder).unlink(missing_ok=True)
        except (Timeout, OSError):
            continue
        yield folder


def _age_seconds(folder: Path) -> float:
    """Seconds since the last change of the folder or of a file in it."""
    changes = [folder.stat().st_mtime]
    for path in folder.rglob("*"):
        try:
            changes.append(path.stat().st_mtime)
        except OSError:  # another process has removed it
            continue
    return time.time() - max(changes)
