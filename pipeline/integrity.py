"""Checks files against dvc.lock, and gives the commands that repair them.

DVC does not hash a file that is read-only in its cache, nor a file that it took from there. So a wrong byte in the cache
would be trained on, under the md5 of the right bytes.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.hashing import Hashes, file_md5, known_md5
from pipeline.tracking.lock import command, current, project
from pruneonce.errors import DataError

BAD = Path(".pruneonce/corrupt")  # names the files of the cache to remove, where they are too many for a message
NAMED = 5  # files that a message names


@dataclass(frozen=True)
class Wrong:
    """An out that is not what dvc.lock says. files: those that differ, if known. bad: damaged files in the cache."""

    path: str
    stage: str
    files: list[str]
    bad: list[Path]


def check(known: Hashes, paths: Iterable[Path]) -> None:
    """Raises DataError if an out of dvc.lock, at one of these paths or inside it, has another md5 than dvc.lock says.

    A file that no stage wrote is not checked; without a dvc.lock nothing is. Raises ConfigError if dvc.lock, dvc.yaml or
    params.yaml cannot be read: with nothing to compare, a stage would compute from wrong bytes.
    """
    names = {path.as_posix().rstrip("/") for path in paths}
    recorded = [
        (stage.name, out, md5s)
        for stage in current().values()
        for out, md5s in stage.outs.items()
        if md5s and any(out == path or out.startswith(f"{path}/") for path in names) and Path(out).exists()
    ]
    if wrong := [_wrong(*entry, known) for entry in recorded if known_md5(Path(entry[1]), known) != entry[2]]:
        raise DataError(_message(wrong))


def _wrong(stage: str, out: str, recorded: str, known: Hashes) -> Wrong:
    folder = project(stage)
    cache = Path(os.path.normpath(folder / (_dvc(folder, "cache", "dir").strip() or ".dvc/cache"))) / "files/md5"
    listing = listed(_object(cache, recorded)) if recorded.endswith(".dir") else {"": recorded}
    there = {path.relative_to(out).as_posix(): found for path, found in known.items() if path.is_relative_to(out)}
    there = {"" if name == "." else name: found for name, found in there.items()}
    names = sorted(name for name in {*listing, *there} if listing.get(name) != there.get(name)) if listing else []
    objects = {_object(cache, found) for found in (recorded, *listing.values())}
    return Wrong(out, stage, [n for n in names if n], sorted(path for path in objects if path.is_file() and not whole(path)))


def _object(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]


def listed(path: Path) -> dict[str, str]:
    """relpath -> md5 of a folder whose listing is this object of DVC's cache; empty if it is not there, or damaged."""
    try:
        return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_bytes())}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def whole(path: Path) -> bool:
    """Whether an object of DVC's cache is there, and is what its name says."""
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
    """What a command of DVC says in a project; here, once something is wrong, its second does not matter."""
    return subprocess.run([sys.executable, "-m", "dvc", *words], cwd=folder, capture_output=True, text=True).stdout
