"""What every package may need of a file. Standard library only: `pruneonce.load` runs without torch."""

import os
from pathlib import Path

LFS_HEAD = b"version https://git-lfs"


def is_lfs_pointer(path: Path) -> bool:
    """Return whether the file is a pointer of Git LFS: a few lines of text in the place of the content."""
    with path.open("rb") as file:
        return file.read(len(LFS_HEAD)) == LFS_HEAD


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
