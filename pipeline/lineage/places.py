"""Where the bytes of an out may lie: this folder, DVC's cache, DVC's remote, git. Each file is read once."""

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline import dvc_settings, ignored
from pipeline.git import said
from pipeline.hashing import known_md5
from pipeline.integrity import listed
from pipeline.lineage import git
from pipeline.tracking.lock import FOLDERS, PIPELINE

State = Literal["holds", "by name", "differs", "not here"]
OBJECTS = Path("files/md5")


@dataclass(frozen=True)
class Seen:
    """What was found of a file in one place. what: of a difference, what is there instead."""

    state: State
    place: str
    what: str = ""


@functools.cache
def _md5(device: int, inode: int, changed: int, path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def md5_of(path: Path) -> str:
    """md5 of a file; the cache and the folder may share it, and it is then read once."""
    status = path.stat()
    return _md5(status.st_dev, status.st_ino, status.st_mtime_ns, str(path.resolve()))


def folder_md5(path: Path) -> str:
    """As `hashing.file_md5`, without reading a file twice."""
    if path.is_dir():
        return known_md5(path, {file: md5_of(file) for file in ignored.files(path)})
    return md5_of(path)


def in_workspace(path: str, md5: str) -> Seen:
    """An out or a dep in this folder."""
    here = Path(path)
    if not here.exists():
        return Seen("not here", "this folder")
    try:
        found = folder_md5(here)
    except OSError as error:
        return Seen("differs", "this folder", f"it cannot be read: {error.strerror}")
    return Seen("holds", "this folder") if found == md5 else Seen("differs", "this folder", f"md5 {found}")


def in_store(root: Path, md5: str, place: str) -> Seen:
    """An out among the objects below `root`: DVC's cache, or a remote in a folder. A folder's files are looked at too."""
    first = root / OBJECTS / md5[:2] / md5[2:]
    if not first.is_file():
        return Seen("not here", place)
    objects = [(first, md5.removesuffix(".dir"))]
    if md5.endswith(".dir"):
        objects += [(root / OBJECTS / inner[:2] / inner[2:], inner) for inner in sorted(set(listed(first).values()))]
    missing = 0
    for path, name in objects:
        if not path.is_file():
            missing += 1
            continue
        try:
            found = md5_of(path)
        except OSError as error:
            return Seen("differs", place, f"{path} cannot be read: {error.strerror}")
        if found != name:
            return Seen("differs", place, f"{path} has md5 {found}")
    return Seen("not here", place, f"{missing} of {len(objects)} files are missing") if missing else Seen("holds", place)


def in_git(path: str, md5: str, commit: str) -> Seen:
    """A file or a folder of code in a commit."""
    return Seen("holds" if md5_in(commit, path) == md5 else "not here", "git")


@functools.cache
def md5_in(commit: str, path: str) -> str | None:
    """md5 of a file or a folder in a commit, as DVC counts it; None if it is not there."""
    found = git.blob(commit, path)
    if found is not None:
        return hashlib.md5(found).hexdigest()
    names = said("ls-tree", "-r", "--name-only", "-z", commit, "--", f"{path}/")
    if not names:
        return None
    blobs = {Path(name): git.blob(commit, name) for name in names.split("\0") if name}
    return known_md5(Path(path), {name: hashlib.md5(blob).hexdigest() for name, blob in blobs.items() if blob is not None})


def commit_with(path: str, md5: str, first: str = "") -> str | None:
    """The newest commit in which a file or folder has this md5; `first` is tried before all others. None: in none."""
    commits = [*filter(None, [first]), *git.commits_of(path)]
    return next((commit for commit in commits if md5_in(commit, path) == md5), None)


class Stores:
    """DVC's cache and remote of each project, by what DVC says of its configuration. DVC is asked once."""

    def __init__(self) -> None:
        self.cache, self.remote = functools.cache(dvc_settings.cache), functools.cache(self._remote)
        self._configuration, self._absent = functools.cache(_configuration), functools.cache(_absent)

    def _remote(self, project: Path) -> tuple[str, Path | None] | None:
        """(name, folder or None for one that is no folder) of the default remote; None if there is none."""
        settings = self._configuration(project)
        name = settings.get("core.remote", "")
        url = settings.get(f"remote.{name}.url", "")
        if not url:
            return None
        return name, None if re.match(r"[a-z0-9+]+://", url) else project / ".dvc" / url

    def seen(self, path: str, md5: str, *, now: bool) -> Iterator[Seen]:
        """An out in the cache and on the remote. now: dvc.lock has it; of others DVC says nothing by name."""
        project = project_of(path)
        yield in_store(self.cache(project), md5, "DVC's cache")
        if remote := self.remote(project):
            name, folder = remote
            if folder is not None:
                yield in_store(folder, md5, f"remote {name}")
            elif now and (absent := self._absent(project)) is not None:
                inner = os.path.relpath(path, project)
                yield Seen("not here" if absent.get(inner) in ("new", "missing") else "by name", f"remote {name}")


def _configuration(project: Path) -> dict[str, str]:
    """What DVC's configuration says of remotes. DVC takes a second to tell: it is asked if a file names one."""
    files = dvc_settings.files(project)
    if not any("remote" in file.read_text(errors="replace") for file in files if file.is_file()):
        return {}
    lines = _dvc(project, "config", "--list").splitlines()
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def _absent(project: Path) -> dict[str, str] | None:
    """Path -> DVC's word for what dvc.lock has, but not both the remote and the cache; None if DVC cannot say."""
    try:
        return dict(json.loads(_dvc(project, "status", "--cloud", "--json")))
    except ValueError:
        return None


def project_of(path: str) -> Path:
    """The folder of the DVC project that an out lies in."""
    inside = [folder for folder in FOLDERS if folder != PIPELINE and Path(path).is_relative_to(folder)]
    return max(inside, key=lambda folder: len(folder.parts), default=PIPELINE)


def _dvc(folder: Path, *words: str) -> str:
    """The output of a command of DVC in a project. It takes about a second."""
    if not (folder / ".dvc").is_dir():
        return ""
    return subprocess.run([sys.executable, "-m", "dvc", *words], cwd=folder, capture_output=True, text=True).stdout
