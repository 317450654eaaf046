"""Whether DVC has what it recorded.

Where the disk of its cache is full, DVC says so in a line of its log, records the stage as done, and ends with success: the
only copy of the outs is the workspace, and the next run computes them again, for they are `not in cache`.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvc.output import Output
from dvc.repo import Repo

from flows import trouble
from flows.trouble import StageFailed
from pipeline import integrity, lineage
from pruneonce.errors import DataError

LOG = "dvc_data.hashfile.transfer"


@contextmanager
def transfers() -> Iterator[list[str]]:
    """Why objects did not get into the cache: DVC logs it, and does not raise."""
    found: list[str] = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(trouble.said(record.exc_info[1]) if record.exc_info and record.exc_info[1] else record.getMessage())

    notes = Notes(logging.ERROR)
    logging.getLogger(LOG).addHandler(notes)
    try:
        yield found
    finally:
        logging.getLogger(LOG).removeHandler(notes)


def check(stage: str, reasons: list[str]) -> None:
    """Raises StageFailed unless DVC's cache has all that dvc.lock records of the stage. reasons: of `transfers`."""
    with Repo(str(lineage.project(stage))) as repo:
        if lost := [str(_path(out)) for out in _outs(repo, stage) if out.changed_cache()]:
            why = reasons[0] if reasons else "DVC does not say why"
            raise StageFailed(
                f"expected {', '.join(lost)} of {stage} in DVC's cache, {repo.cache.local.path}, found less than all of it "
                f"there ({why}). Is the disk full? What was computed stands in the workspace alone: free some space and run "
                "again; then it is stored, not computed again."
            )


def store(repo: Repo, stage: str, changes: list[Any]) -> bool:
    """Put the stage's outs into DVC's cache, if that is all they lack. changes: DVC's status of the stage.

    Returns whether it was. Raises StageFailed if the cache does not take them.
    """
    outs = _outs(repo, stage)
    unchanged = not any(out.workspace_status() for out in outs)
    if not (unchanged and all(_not_in_cache(change) for change in changes) and _right(outs)):
        return False
    with transfers() as reasons:
        repo.commit(stage, force=True)
    check(stage, reasons)
    return True


def check_restored(stage: str) -> None:
    """Raises DataError if what DVC took from its cache is not what it recorded: it looks only whether a file is there.

    The copies are removed then, else the next run would find them unchanged.
    """
    with Repo(str(lineage.project(stage))) as repo:
        outs = _outs(repo, stage)
        try:
            _verify(outs)
        except DataError:
            for out in outs:
                out.remove()
            raise


def _right(outs: list[Output]) -> bool:
    """Whether the bytes are those of dvc.lock: what DVC remembers of a file may be wrong."""
    try:
        _verify(outs)
    except DataError:
        return False
    return True


def _verify(outs: list[Output]) -> None:
    paths = [_path(out) for out in outs]
    integrity.check({file: md5 for path in paths for file, md5 in integrity.hashes(path).items()}, paths)


def _outs(repo: Repo, stage: str) -> list[Output]:
    return [out for found in repo.stage.collect(stage) for out in found.outs if out.use_cache]


def _path(out: Output) -> Path:
    return Path(os.path.relpath(out.fs_path))


def _not_in_cache(change: Any) -> bool:
    entries = change.get("changed outs", {}) if isinstance(change, Mapping) else {}
    return bool(entries) and set(entries.values()) == {"not in cache"}
