"""Folders: a source's folder is written whole, or not at all."""

import contextlib
import lzma
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from pruneonce.errors import SourceError, UnsafeArchive, disk_is_full

# Raised by the system and by readers of archives for a name, a file or an archive that is damaged.
FAULTS = (
    *(OSError, EOFError, ValueError, RuntimeError, MemoryError, OverflowError, LookupError),
    *(struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError),
)


@dataclass(frozen=True)
class File:
    """A file to write: its size in bytes, and a function that opens its content."""

    size: int
    open: Callable[[], Any]


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[None]:
    """Make `folder` new and empty; remove it again if the block fails.

    It is filled in its own place: a killed process would leave a temporary folder that no stage knows.
    """
    _remove(folder)
    folder.mkdir(parents=True)
    try:
        yield
    except BaseException:
        _remove(folder)
        raise


def _remove(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.unlink(missing_ok=True)


@contextlib.contextmanager
def faults_as_errors(action: str) -> Iterator[None]:
    """Turn a fault of the system or of an archive into a SourceError that names the action; a full disk passes."""
    try:
        yield
    except FAULTS as error:
        if disk_is_full(error):
            raise
        reason = (isinstance(error, OSError) and error.strerror) or str(error).rstrip(".") or type(error).__name__
        raise SourceError(f"expected to {action}, found: {reason}. Is it whole, and may it be read?") from error


def file_name(name: str, file: PurePath) -> str:
    """Return the name of a member's file in the source's folder; under the name `.` it keeps its own."""
    return name if PurePosixPath(name) != PurePosixPath() else file.name


def add(plan: dict[str, File], target: str, file: File) -> None:
    """Add a file to a plan: name in the source's folder -> file. Raises SourceError for a name that is taken."""
    if target in plan:
        raise SourceError(f"expected one file for each name, found two for {target}. Correct `members` of this source.")
    plan[target] = file


def write(plan: Mapping[str, File], folder: Path, origin: str) -> None:
    """Write the files of a plan into `folder`, all or none. origin: of the files, for messages.

    Raises SourceError for a plan without files or a disk without room, UnsafeArchive for a name outside `folder`.
    """
    for target in plan:
        _inside(folder, target)
    size = sum(file.size for file in plan.values())
    with whole(folder):
        free = shutil.disk_usage(folder).free
        if size > free:  # a small archive may claim any size
            raise SourceError(
                f"expected room for the {size} bytes of {origin} at {folder}, found {free}: free some space and run again."
            )
        if not plan:
            raise SourceError(f"expected files in {origin}, found none.")
        for target, file in plan.items():
            place = _inside(folder, target)
            place.parent.mkdir(parents=True, exist_ok=True)
            with file.open() as source, place.open("xb") as out:
                shutil.copyfileobj(source, out)


def _inside(folder: Path, name: str) -> Path:
    """Return `folder / name`. Raises UnsafeArchive if that is outside of the folder."""
    target = (folder / name).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise UnsafeArchive(f"expected names inside {folder.name}, found {name!r}, which would be written outside of it.")
    return target


def file_counts(folder: Path) -> dict[str, int]:
    """Return the number of files in a folder and in the folders below, and their bytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {"files": len(sizes), "bytes": sum(sizes)}
