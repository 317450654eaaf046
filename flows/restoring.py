"""Bring stages up to date without computing: from DVC's cache, or from its remote."""

import time
from contextlib import suppress

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage.cache import RunCacheNotFoundError
from dvc_data.hashfile.hash_info import HashInfo

from flows import keeping, trouble
from flows.repro import Outcome, repro


def restored(stage: str) -> Outcome | None:
    """Bring a stage up to date if its command need not run. Its dependencies must be. Returns None if it must run."""
    began = time.monotonic()
    with trouble.plainly(f"DVC to look for the outs of {stage}"):
        if not _changed(stage):
            return Outcome(stage, "unchanged", "as in dvc.lock", 0.0)
        with Repo() as repo, suppress(DvcException):  # the remote may not have them
            if _only_outs(repo, stage):
                fetch(repo, [stage])
                with Repo() as own:  # DVC does not hash what it takes from its cache
                    keeping.check_restored(own, stage)
        if not _changed(stage):
            return Outcome(stage, "restored from cache", "its outs were missing here", time.monotonic() - began)
        return repro(stage) if _in_run_cache(stage) else None


def fetch(repo: Repo, targets: list[str]) -> None:
    """Get outs from DVC's cache, or from its remote where there is one. targets: stages or paths; none for none.

    Raises DvcException if they are not to be had.
    """
    if not targets:
        return
    try:
        if repo.config["core"].get("remote"):
            repo.pull(targets=targets)
        else:
            repo.checkout(targets=targets)
    except (DvcException, OSError):
        raise
    except Exception as error:  # of a remote's own library, such as botocore
        raise DvcException(f"{type(error).__name__}: {error}") from error


def _changed(stage: str) -> bool:
    with Repo() as repo:
        return bool(repo.status(targets=[stage], with_deps=False))


def _only_outs(repo: Repo, stage: str) -> bool:
    """Whether dvc.lock has the stage as it would be now: only the files are missing."""
    return all(
        isinstance(change, dict) and set(change) == {"changed outs"}
        for change in repo.status(targets=[stage], with_deps=False).get(stage, [])
    )


def _in_run_cache(stage: str) -> bool:
    with Repo() as repo:
        (found,) = repo.stage.collect(stage)
        try:
            found.save_deps()
            for out in found.outs:
                out.hash_info = HashInfo()  # else DVC takes the outs in dvc.lock for those of the deps as they are now
            repo.stage_cache.restore(found, dry=True)
        except (RunCacheNotFoundError, DvcException):
            return False
    return True
