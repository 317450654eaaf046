"""Checks that DVC's cache has what DVC recorded.

If the disk of the cache is full, DVC logs that, records the stage as done, and ends with success. The only copy of the outs
is then in the workspace, and the next run would compute them again, for they are `not in cache`.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, suppress
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.output import Output
from dvc.repo import Repo

from flows import trouble
from flows.trouble import StageFailed
from pipeline import integrity
from pipeline.hashing import hashes
from pipeline.tracking.lock import short
from pruneonce.errors import DataError

LOG = "dvc_data.hashfile.transfer"


@contextmanager
def transfers() -> Iterator[list[str]]:
    """The errors that DVC logs inside, and does not raise, when objects do not get into its cache."""
    found: list[str] = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(
                trouble.messages(record.exc_info[1]) if record.exc_info and record.exc_info[1] else record.getMessage()
            )

    notes = Notes(logging.ERROR)
    logging.getLogger(LOG).addHandler(notes)
    try:
        yield found
    finally:
        logging.getLogger(LOG).removeHandler(notes)


def check(repo: Repo, stage: str, reasons: list[str]) -> None:
    """Raises StageFailed unless DVC's cache has all that dvc.lock records of the stage. reasons: of `transfers`."""
    if lost := [str(_path(out)) for out in _outs(repo, stage) if out.changed_cache()]:
        why = reasons[0] if reasons else "DVC does not say why"
        raise StageFailed(
            f"expected {', '.join(lost)} of {stage} in DVC's cache, {repo.cache.local.path}, found less than all of it "
            f"there ({why}). Is the disk full? The outs are in the workspace alone: free some space and run again; then "
            "they are stored, not computed again."
        )


def store(repo: Repo, stage: str, changes: list[Any]) -> bool:
    """Put the stage's outs into DVC's cache if nothing else is missing. changes: DVC's status of the stage.

    Returns whether they were stored. Raises StageFailed if the cache does not take them.
    """
    outs = _outs(repo, stage)
    if any(out.workspace_status() for out in outs) or not all(_not_in_cache(change) for change in changes):
        return False
    try:
        _verify(outs)
    except DataError:
        return False
    # DVC's run cache takes paths relative to the working folder, so this must be the project's, and the repository its own.
    with transfers() as reasons, chdir(repo.root_dir), Repo() as own:
        own.commit(short(stage), force=True)
    check(repo, stage, reasons)
    return True


def remember(repo: Repo, stage: str) -> None:
    """Put a stage that ran into DVC's run cache if DVC leaves it out: it has an out for git that is no metric and no plot.

    So another clone with this cache restores the stage. If the cache does not take it, the stage is computed again there.
    """
    with suppress(DvcException, OSError), chdir(repo.root_dir), Repo() as own:
        (found,) = own.stage.collect(short(stage))
        if any(not out.use_cache and not (out.is_metric or out.is_plot) for out in found.outs):
            own.stage_cache.save(found)


def check_restored(repo: Repo, stage: str) -> None:
    """Raises DataError if the outs that DVC took from its cache are not those it recorded: DVC does not hash them.

    The copies are removed then, else the next run would find them unchanged.
    """
    outs = _outs(repo, stage)
    try:
        _verify(outs)
    except DataError:
        for out in outs:
            out.remove()
        raise


def _verify(outs: list[Output]) -> None:
    """Raises DataError if the bytes are not those of dvc.lock. DVC's own record of a file may be wrong."""
    paths = [_path(out) for out in outs]
    integrity.check(hashes(*paths), paths)


def _outs(repo: Repo, stage: str) -> list[Output]:
    return [out for found in repo.stage.collect(stage) for out in found.outs if out.use_cache]


def _path(out: Output) -> Path:
    return Path(os.path.relpath(out.fs_path))


def _not_in_cache(change: Any) -> bool:
    entries = change.get("changed outs", {}) if isinstance(change, Mapping) else {}
    return bool(entries) and set(entries.values()) == {"not in cache"}
