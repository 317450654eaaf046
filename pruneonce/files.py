"""Checks of a file that every package may need. Standard library only: `pruneonce.load` runs without torch."""

from pathlib import Path

LFS_HEAD = b"version https://git-lfs"


def is_lfs_pointer(path: Path) -> bool:
    """Return whether the file is a pointer of Git LFS: a few lines of text in the place of the content."""
    with path.open("rb") as file:
        return file.read(len(LFS_HEAD)) == LFS_HEAD
