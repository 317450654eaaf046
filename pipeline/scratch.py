"""The scratch folder: what an unfinished stage has saved, in a folder of its own, until DVC has recorded the stage.

A stage's folder is named after all that determines its bytes, the processor and the versions included. So the same stage
goes on from it, on any such machine that shares the scratch folder, and no other stage reads it.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline import machine

PLACE = "PRUNEONCE_SCRATCH"  # environment variable: another folder, such as one outside of a clone that is made for one run
DEFAULT = Path(".pruneonce/scratch")  # ignored by git, safe to delete
DONE = "done"  # file in a folder: its stage has ended, with these outs, which DVC may not have recorded yet
SEEN = ".pruneonce-seen"  # file beside the folders: when a stage last looked for old ones
PROLONGED = "prolonged"  # file in a folder: it got its days again once
OWN = re.compile(r".+-[0-9a-f]{16}(\.gone)?")  # names of our folders: the place may hold other people's too
DAY_SECONDS = 86400.0


def root() -> Path:
    """The scratch folder of this machine."""
    return Path(os.environ.get(PLACE) or DEFAULT)


def of(stage: str, params: Mapping[str, Any], inputs: Mapping[str, str]) -> Path:
    """The folder of a stage. params: its parameters, dotted key -> value; inputs: path -> md5 of its data and code."""
    processes = os.environ.get("WORLD_SIZE", "1")
    computed_by = (machine.processor(), sorted(machine.versions().items()), processes)  # another one differs in the last bit
    made_of = repr((sorted(params.items()), sorted(inputs.items()), computed_by))
    return root() / f"{stage}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"


def lock_of(folder: Path) -> Path:
    """The lock that the process holds which computes the stage of this folder."""
    return folder.with_name(f"{folder.name}.lock")


def finish(folder: Path, outs: Mapping[str, str]) -> None:
    """Note that the stage has ended. outs: path -> md5, as DVC will record them.

    The folder stays until then: a kill of DVC before that loses no training.
    """
    with suppress(OSError):  # then it is as if the stage had not ended
        (folder / DONE).write_text(json.dumps(outs))


def begin(folder: Path) -> None:
    """Note that the stage is at work, perhaps again."""
    (folder / DONE).unlink(missing_ok=True)


def remove_recorded(outs_of: Callable[[], Mapping[str, Mapping[str, str]]]) -> None:
    """Remove the folders of stages that have ended, and whose outs DVC has recorded. outs_of: stage -> path -> md5."""
    done = [file for file in root().glob(f"*/{DONE}") if OWN.fullmatch(file.parent.name)]
    recorded = outs_of() if done else {}
    for file in done:
        with suppress(OSError, ValueError, Timeout):
            if recorded.get(file.parent.name.rpartition("-")[0]) == json.loads(file.read_text()):
                _remove(file.parent)


def remove_old(days: float, *, except_for: Path) -> Iterator[Path]:
    """Remove stages' folders that nobody wrote to for so many days, unless a process holds their lock; yield their names.

    Where no stage looked for so many days, the clock may have jumped. Then each folder gets as many days again, once.
    """
    if not root().is_dir():
        return
    seen, limit = root() / SEEN, days * DAY_SECONDS
    jumped = not seen.exists() or _age_seconds(seen) >= limit
    with suppress(OSError):
        seen.touch()
    for folder in sorted(path for path in root().iterdir() if OWN.fullmatch(path.name)):
        if folder == except_for or _age_seconds(folder) < limit or not folder.is_dir():
            continue
        with suppress(OSError, Timeout):
            if jumped and not (folder / PROLONGED).exists():
                (folder / PROLONGED).touch()
            else:
                _remove(folder)
                yield folder


def _remove(folder: Path) -> None:
    """Remove a folder, and its lock. Raises Timeout if a process holds that. A kill leaves all of the folder, or no name."""
    lock = lock_of(folder)
    with FileLock(lock).acquire(timeout=0):
        gone = folder.with_name(f"{folder.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        lock.with_name(f"{lock.name}.pid").unlink(missing_ok=True)
        lock.unlink(missing_ok=True)


def _age_seconds(folder: Path) -> float:
    """Seconds since the last change of the folder or of a file in it; 0 if another process removes it now."""
    changes = [0.0]
    try:
        changes += [path.stat().st_mtime for path in (folder, *folder.rglob("*"))]
    except OSError:
        return 0.0
    return time.time() - max(changes)
