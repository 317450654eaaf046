"""Whether the library of the sparse kernels is as new as its sources, as `make` judges it."""

from collections.abc import Iterator
from pathlib import Path

from pruneonce.doctor.findings import NOTE, Finding
from pruneonce.doctor.kernels import LIBRARY

SOURCES = Path("kernels")


def sources() -> Iterator[Finding]:
    files = [*SOURCES.glob("*.[ch]"), SOURCES / "build.py"]
    if not LIBRARY.exists() or not all(file.exists() for file in files):
        return
    newest = max(files, key=lambda file: file.stat().st_mtime)
    if newest.stat().st_mtime > LIBRARY.stat().st_mtime:
        yield Finding("kernels", NOTE, f"{newest} is newer than {LIBRARY}, which was built before", "make install")
