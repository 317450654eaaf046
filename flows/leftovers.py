"""What a stage that is gone left in a folder that another stage reads whole.

The corpus keeps out the test texts of all that stands in data/tasks: those of a former profile's tasks would shape what is
computed, and a fresh clone would compute something else.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from dvc.lock import LockError
from dvc.repo import Repo
from dvc.rwlock import rwlock

from pipeline import integrity, lineage


def clear(repo: Repo) -> list[str]:
    """Remove the folders that no stage writes any more and that DVC's cache holds as they stand, so that nothing is lost;
    leave the others. Returns what was done, a line each."""
    strays = _strays(repo)
    locked = lineage.locked() if strays else {}
    return [_clear(repo, path, locked) for path in strays]


def _clear(repo: Repo, path: Path, locked: Mapping[str, lineage.Stage]) -> str:
    name, whole = (p.relative_to(repo.root_dir).as_posix() for p in (path, path.parent))
    recorded = {stage.outs[name] for stage in locked.values() if name in stage.outs}
    if recorded and (md5 := lineage.file_md5(path)) in recorded and _cached(repo, md5):
        try:
            with rwlock(repo.tmp_dir, repo.fs, "make run", [], [str(path)], repo.config["core"].get("hardlink_lock", False)):
                shutil.rmtree(path)
        except LockError:
            return f"{name}: left there, for a stage that is under way reads it"
        return f"{name}: removed, for no stage writes it now and one reads all of {whole}; DVC's cache keeps it"
    return (
        f"{name}: left there, though no stage writes it and one reads all of {whole}, for DVC's cache does not have it as "
        "it stands. A fresh clone computes without it; move it away to do the same"
    )


def _strays(repo: Repo) -> list[Path]:
    """The folders beside outs, in a folder that is a dep, that are neither outs nor deps themselves."""
    stages = repo.index.stages
    outs = {Path(out.fs_path) for stage in stages for out in stage.outs}
    deps = {Path(dep.fs_path) for stage in stages for dep in stage.deps}
    named = {path for entry in outs | deps for path in (entry, *entry.parents)}
    shared = {dep for dep in deps - outs if any(dep in out.parents for out in outs) and dep.is_dir()}
    return sorted(path for folder in shared for path in folder.iterdir() if path.is_dir() and path not in named)


def _cached(repo: Repo, md5: str) -> bool:
    """Whether DVC's cache has the folder's listing and every file that stands in it, by their bytes, not by their names."""

    def stored(md5: str) -> Path:
        return Path(repo.cache.local.oid_to_path(md5))

    return integrity.whole(stored(md5)) and all(integrity.whole(stored(m)) for m in integrity.listed(stored(md5)).values())
