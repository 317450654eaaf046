"""Finished files and folders, each with a checksum beside it: a cell that was stopped goes on after the last of them."""

import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path


def finish(path: Path, write: Callable[[Path], object]) -> None:
    """Make `path` by `write`, which gets another name to write a file or folder to. After a kill, `path` is not finished."""
    part = path.with_name(f"{path.name}.finish.part")
    write(part)
    _checksum_file(path).write_text(_sha256(part))
    part.rename(path)


def is_finished(path: Path) -> bool:
    """Whether `path` is there, unchanged since `finish`. One that was changed is removed, with a line on stderr."""
    if not path.exists():
        return False
    try:
        if _checksum_file(path).read_text() == _sha256(path):
            return True
    except (OSError, ValueError):
        pass
    print(f"expected {path} as it was written, found it changed. It is discarded, and made again.", file=sys.stderr)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return False


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _sha256(path: Path) -> str:
    """Checksum of a file's bytes, or of the names and bytes of all files of a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        digest.update(f"{file.name if path.is_dir() else ''} {file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
