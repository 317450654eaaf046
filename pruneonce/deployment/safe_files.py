"""Read and write the files that a user names. Only regular files; a written file is whole or not there."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from pruneonce.errors import PackError
from pruneonce.files import is_lfs_pointer


def check_file(source: Path) -> None:
    """Raises PackError unless `source` is a regular file or a link to one. A device or a pipe may never end."""
    try:
        mode = source.stat().st_mode
        if not stat.S_ISREG(mode):
            raise PackError(f"expected a file at {source}, found {_kind(mode)}.")
        is_pointer = is_lfs_pointer(source)
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        raise PackError(f"expected a file at {source}, found none: {getattr(error, 'strerror', error)}.") from None
    if is_pointer:
        raise PackError(f"expected the file itself at {source}, found what Git LFS keeps in its place. Get it: git lfs pull")


def open_file(source: Path) -> BinaryIO:
    """`source` opened for reading. Raises PackError as `check_file` does."""
    check_file(source)
    return source.open("rb")


def write_whole(target: Path, parts: Iterable[bytes], source: BinaryIO) -> None:
    """Write `parts`, which are made from `source`, under a temporary name, then rename it to `target`.

    Raises PackError if `target` exists and is not a regular file, is the source, or cannot be written.
    """
    _check_target(target, source)
    temporary = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with temporary.open("xb") as file:
            file.writelines(parts)
        temporary.replace(target)
    except OSError as error:
        raise PackError(f"expected to write {target}, found: {error}.") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _check_target(target: Path, source: BinaryIO) -> None:
    try:
        status = target.lstat()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise PackError(f"expected to write {target}, found: {error}.") from None
    if not stat.S_ISREG(status.st_mode):
        raise PackError(f"expected to write {target}, found {_kind(status.st_mode)} there. Name a file.")
    if os.path.samestat(status, os.fstat(source.fileno())):
        raise PackError(f"expected to write another file than is read, found {target} for both. Name another one.")


def _kind(mode: int) -> str:
    return "a folder" if stat.S_ISDIR(mode) else "a link" if stat.S_ISLNK(mode) else "a device or a pipe"
