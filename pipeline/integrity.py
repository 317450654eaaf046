"""Checks of files against dvc.lock, with the commands that repair them.

DVC trusts its cache: it does not hash a read-only file there, nor a file that it takes from there. Without this check, a
stage would train on a damaged file and record the md5 of the right one.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pipeline.hashing import Hashes, file_md5, known_md5
from pipeline.tracking.lock import command, current, project
from pruneonce.errors import DataError

BAD = Path(".pruneonce/corrupt")  # a list of the damaged files in the cache, if they are too many for a message
NAMED = 5  # files that a message names


@dataclass(frozen=True)
class Wrong:
    """An out whose md5 is not that of dvc.lock.

    files: the names of the files in it that differ, if they are known. bad: the damaged files in DVC's cache.
    """

    path: str
    stage: str
    files: list[str]
    bad: list[Path]


def check(known: Hashes, paths: Collection[Path]) -> None:
    """Raises DataError if an out at one of these paths, or inside one, has another md5 than dvc.lock has.

    known: the md5s of the files. A file that no stage wrote is not checked. Without a dvc.lock no file is checked.
    Raises ConfigError if dvc.lock, dvc.yaml or params.yaml cannot be read.
    """
    recorded = [
        (stage.name, out, md5s)
        for stage in current().values()
        for out, md5s in stage.outs.items()
        if md5s and any(Path(out).is_relative_to(path) for path in paths) and Path(out).exists()
    ]
    if wrong := [_wrong(*entry, known) for entry in recorded if known_md5(Path(entry[1]), known) != entry[2]]:
        raise DataError(_message(wrong))


def _wrong(stage: str, out: str, recorded: str, known: Hashes) -> Wrong:
    folder = project(stage)
    cache = Path(os.path.normpath(folder / (_dvc(folder, "cache", "dir").strip() or ".dvc/cache"))) / "files/md5"
    listing = listed(_object(cache, recorded)) if recorded.endswith(".dir") else {}
    there = {path.relative_to(out).as_posix(): found for path, found in known.items() if path.is_relative_to(out)}
    names = sorted(name for name in {*listing, *there} - {"."} if listing.get(name) != there.get(name)) if listing else []
    objects = {_object(cache, found) for found in (recorded, *listing.values())}
    return Wrong(out, stage, names, sorted(path for path in objects if path.is_file() and not whole(path)))


def _object(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]


def listed(path: Path) -> dict[str, str]:
    """relpath -> md5, as this listing of a folder in DVC's cache has them; empty if it is missing or damaged."""
    try:
        return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_bytes())}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def whole(path: Path) -> bool:
    """Whether an object of DVC's cache exists and has the md5 that is its name."""
    try:
        return path.is_file() and file_md5(path) == (path.parent.name + path.name).removesuffix(".dir")
    except OSError:  # no permission, a bad disk
        return False


def _message(wrong: list[Wrong]) -> str:
    outs, bad = [entry.path for entry in wrong], [str(path) for entry in wrong for path in entry.bad]
    made = ", ".join(f"{entry.path}{_some(entry.files)} of {entry.stage}" for entry in wrong)
    stages = [entry.stage for entry in wrong]
    again = command("repro", *stages)
    if len(bad) > NAMED:
        BAD.parent.mkdir(exist_ok=True)
        BAD.write_text("".join(f"{path}\n" for path in bad))
        remove = f"tr '\\n' '\\0' < {BAD} | xargs -0 rm -f && {shlex.join(['rm', '-rf', *outs])}"
    else:
        remove = shlex.join(["rm", "-rf", *outs, *bad])
    where = "DVC's cache has the same wrong bytes" if bad else "they were changed after it"
    keep = "" if bad else f" To keep them as they are instead: {command('commit --force', *stages)}."
    has_remote = bad and _dvc(Path(), "config", "core.remote").strip()
    remote = " (--pull takes it from a remote, if that has the right ones)" if has_remote else ""
    return (
        f"expected what dvc.lock says, found other bytes in {made}; {where}. Nothing was computed from them.{keep} "
        f"To repair it{remote}: {remove} && {again}"
    )


def _some(files: list[str]) -> str:
    """["a", "b"] -> " (a, b)"."""
    more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    return f" ({', '.join(files[:NAMED])}{more})" if files else ""


def _dvc(folder: Path, *words: str) -> str:
    """The output of a command of DVC in a project. It takes about a second."""
    return subprocess.run([sys.executable, "-m", "dvc", *words], cwd=folder, capture_output=True, text=True).stdout
