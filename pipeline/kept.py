"""Parts of a stage's work that outlive a kill: each lies in the stage's scratch folder, whole, with a checksum beside it.

A stage asks for a part by its name. The part is made once; a run that goes on after a kill finds it.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline import machine
from pruneonce.files import sync


class Kept:
    """`kept(name, make)`: the path of a finished file or folder.

    scratch: of the stage's log. Parts of another processor or of other versions are not mixed in: they may differ in the
    last bit. made_by: what else a part depends on that does not determine the stage.
    """

    def __init__(self, scratch: Path, *made_by: str | None):
        maker = json.dumps([machine.processor(), machine.versions(), *made_by], sort_keys=True)
        self.folder = scratch / f"kept-{hashlib.sha256(maker.encode()).hexdigest()[:8]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        if found := len(list(self.folder.glob("*.sha256"))):
            print(
                f"\nAn interrupted run left {found} finished parts in {self.folder}: they are not made again.",
                file=sys.stderr,
            )

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return the path of a part. It is made unless it is there, unchanged since it was made.

        make: gets the path to write to. What it had written before a kill is there; it may go on with that.
        """
        path, checksum = self.folder / name, self.folder / f"{name}.sha256"
        if path.exists():
            if checksum.exists() and checksum.read_bytes() == _digest(path):
                return path
            print(f"\nexpected {path} as it was made, found it changed: it is made again.", file=sys.stderr)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        part = self.folder / f"{name}.part"
        make(part)
        for file in _files(part):
            sync(file)
        checksum.write_bytes(_digest(part))  # before the name: a kill in between leaves a checksum of nothing
        sync(checksum)
        part.rename(path)
        sync(self.folder)
        return path


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _digest(path: Path) -> bytes:
    """The sha256 of the names and bytes of all files, in hexadecimal digits."""
    digest = hashlib.sha256()
    for file in _files(path):
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"{file.relative_to(path) if file != path else ''} {content}\n".encode())
    return digest.hexdigest().encode()
