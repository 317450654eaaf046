"""md5s of files and folders by DVC's rule."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from pipeline import ignored

Hashes = Mapping[Path, str]


def file_md5(path: Path) -> str:
    """md5 of a file, or of a folder's listing with the suffix `.dir`: the names that DVC gives them."""
    return known_md5(path, hashes(path))


def hashes(*paths: Path) -> dict[Path, str]:
    """The md5 of each file, and of every file in a folder that DVC counts."""
    return {file: _md5(file) for path in paths for file in (ignored.files(path) if path.is_dir() else [path])}


def known_md5(path: Path, known: Hashes) -> str:
    """`file_md5` of a file or folder whose files' md5s are known: no file is read twice."""
    if path in known:
        return known[path]
    files = {file.relative_to(path).as_posix(): md5 for file, md5 in known.items() if file.is_relative_to(path)}
    listing = [{"md5": md5, "relpath": name} for name, md5 in sorted(files.items())]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
