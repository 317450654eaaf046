"""Finished files and folders, each with a checksum beside it: a cell that was stopped goes on after the last of them."""

import hashlib
import shutil
import sys
from pathlib import Path


def finish(part: Path, path: Path) -> None:
    """Rename `part`, a complete file or folder, to `path`. The checksum is written first, so a kill loses both or none."""
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
