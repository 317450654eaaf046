"""The sqlite file that holds MLflow's runs: it gets its name when it is complete, and damage is reported.

MLflow makes its tables by some fifty migrations, which take seconds and are not one transaction. If they were interrupted,
MLflow says `duplicate column name` of this file at every start. So they are run on a file of another name.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from pruneonce.errors import TrackerUnreachable
from pruneonce.files import sync

WAIT_SECONDS = 5.0  # for another process that holds the file
MAKING_SECONDS = 300.0  # for another process that makes the file: a busy machine needs a minute
BESIDE = ("-wal", "-shm", "-journal")  # what sqlite keeps beside a file, by its name


def ensure(file: Path, make: Callable[[Path], None]) -> None:
    """Have a complete database at `file`. `make` writes it under another name; once it is on the disk it is renamed.

    One process makes it, others wait. A file without tables counts as missing; any other file is left as it is.
    Raises TrackerUnreachable for a file that is no database, and for what is no file: a device would be replaced.
    """
    file = Path(os.path.realpath(file))  # of a link, what it points to; of a loop of links, one of them
    if os.path.lexists(file) and not file.is_file():
        raise TrackerUnreachable(
            f"expected an MLflow database in {file}, found what is no file: a folder, a device, a pipe or a loop of links. "
            "It is left as it is. Set MLFLOW_TRACKING_URI to a file, or to a server."
        )
    if tables(file):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock", timeout=MAKING_SECONDS):
        if tables(file):
            return
        part = file.with_name(f"{file.name}.part")
        _remove(part)  # of a process that was killed
        try:
            make(part)
            sync(part)
            for ending in BESIDE:  # a log of a file that is gone would be played into the new one
                Path(f"{file}{ending}").unlink(missing_ok=True)
            part.replace(file)
            sync(file.parent)
        finally:
            _remove(part)


def _remove(part: Path) -> None:
    for ending in ("", *BESIDE):
        Path(f"{part}{ending}").unlink(missing_ok=True)


def tables(file: Path) -> set[str]:
    """Names of the tables; empty if there is no such file, or nothing in it."""
    if not file.exists():
        return set()
    with opened(file) as base:
        return {name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def check(file: Path, head: str, older: Callable[[str], bool]) -> None:
    """Raises TrackerUnreachable, with what to do, unless `file` is a database that this MLflow can use as it stands.

    head: the schema that it writes. older: whether it knows a schema, and can bring it up to that one.
    """
    found = tables(file)
    with opened(file) as base:
        versions = base.execute("SELECT version_num FROM alembic_version").fetchall() if "alembic_version" in found else []
        version = versions[0][0] if versions else "none"
        if version == head:
            return
        runs = base.execute("SELECT count(*) FROM runs").fetchone()[0] if "runs" in found else 0
        used = base.execute("SELECT count(*) FROM experiments").fetchone()[0] if "experiments" in found else 0
    if not used:
        raise TrackerUnreachable(
            f"expected a whole MLflow database in {file}, found one without an experiment: the making of it was cut short. "
            f"It holds no run. Move {file} away and run again."
        )
    if older(version):
        raise TrackerUnreachable(
            f"expected {file} as this MLflow writes it, found the schema of an older one ({version}) and {runs} runs. Keep "
            f"a copy of it, and run: mlflow db upgrade sqlite:///{file.absolute()}"
        )
    raise TrackerUnreachable(
        f"expected {file} as this MLflow writes it, found a schema that it does not know ({version}) and {runs} runs. "
        "Install the MLflow that wrote it, or set MLFLOW_TRACKING_URI to another store."
    )


@contextlib.contextmanager
def opened(file: Path) -> Iterator[sqlite3.Connection]:
    """The database, to be read. Raises TrackerUnreachable if sqlite cannot."""
    try:
        with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", WAIT_SECONDS, uri=True)) as base:
            yield base
    except sqlite3.Error as error:
        raise TrackerUnreachable(
            f"expected an MLflow database in {file}, found: {error}. {advice(str(error), file)}"
        ) from None


def advice(message: str, file: Path) -> str:
    """What the user can do about this message of sqlite; empty if that is not known."""
    for words, what in {
        "is locked": "Another process holds it: wait for it or end it, and run again.",
        "is not a database": f"Move {file} away and run again.",
        "malformed": f"It is damaged. Move {file} away and run again; `sqlite3 {file.name} .recover` saves what it can.",
        "is full": "Free some space and run again.",
        "disk I/O error": "Free some space, or look at the disk, and run again.",
        "readonly": f"Make {file}, and the folder that it lies in, writable.",
        "unable to open": f"Make {file} a file that may be read and written.",
    }.items():
        if words in message:
            return what
    return ""
