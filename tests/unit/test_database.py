"""The sqlite file of MLflow's runs, without MLflow: it has its name when it is whole, and what is wrong with it is said."""

import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.tracking import database
from pruneonce.errors import TrackerUnreachable

HEAD = "c3"


def write(file: Path, *, version: str | None = HEAD, experiments: int = 1, runs: int = 0) -> None:
    """A database of MLflow's shape."""
    base = sqlite3.connect(file)
    with base:
        base.execute("CREATE TABLE experiments (id INTEGER)")
        base.execute("CREATE TABLE runs (id INTEGER)")
        base.executemany("INSERT INTO experiments VALUES (?)", [(n,) for n in range(experiments)])
        base.executemany("INSERT INTO runs VALUES (?)", [(n,) for n in range(runs)])
        if version:
            base.execute("CREATE TABLE alembic_version (version_num TEXT)")
            base.execute("INSERT INTO alembic_version VALUES (?)", (version,))
    base.close()


def check(file: Path) -> None:
    database.check(file, HEAD, lambda version: version in ("a1", "b2"))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"mlflow.db.lock"}


def test_it_is_made_once_and_stands_alone(tmp_path):
    file, made = tmp_path / "sub/mlflow.db", []
    for _ in range(2):
        database.ensure(file, lambda part: (made.append(part.name), write(part)))
    assert made == ["mlflow.db.part"]
    assert names(file.parent) == {"mlflow.db"}
    assert database.tables(file) == {"experiments", "runs", "alembic_version"}
    check(file)


def test_of_many_at_once_one_makes_it(tmp_path):
    made: list[Path] = []

    def make(part: Path) -> None:
        made.append(part)
        time.sleep(0.2)
        write(part)

    workers = [threading.Thread(target=database.ensure, args=(tmp_path / "mlflow.db", make)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(made) == 1
    check(tmp_path / "mlflow.db")


def test_what_fails_in_the_making_leaves_no_file(tmp_path):
    def make(part: Path) -> None:
        part.write_text("half")
        Path(f"{part}-journal").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        database.ensure(tmp_path / "mlflow.db", make)
    assert names(tmp_path) == set()


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path):
    write(tmp_path / "mlflow.db.part", experiments=7)
    (tmp_path / "mlflow.db.part-journal").write_text("half")
    (tmp_path / "mlflow.db-wal").write_text("of a file that was moved away")
    database.ensure(tmp_path / "mlflow.db", write)
    assert names(tmp_path) == {"mlflow.db"}
    assert sqlite3.connect(tmp_path / "mlflow.db").execute("SELECT count(*) FROM experiments").fetchone() == (1,)


def test_a_file_with_nothing_in_it_is_none(tmp_path):
    (tmp_path / "mlflow.db").touch()
    database.ensure(tmp_path / "mlflow.db", write)
    check(tmp_path / "mlflow.db")


def test_behind_a_link_it_is_made_where_the_link_points(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "mlflow.db").symlink_to(tmp_path / "disk/runs.db")
    database.ensure(tmp_path / "mlflow.db", write)
    assert (tmp_path / "mlflow.db").is_symlink()
    check(tmp_path / "disk/runs.db")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            {"version": "a1", "experiments": 0},
            "found one without an experiment: the making of it was cut short. It holds no run",
        ),
        ({"version": None, "experiments": 0}, "the making of it was cut short. It holds no run. Move"),
        (
            {"version": "a1", "runs": 3},
            "found the schema of an older one (a1) and 3 runs. Keep a copy of it, and run: mlflow db",
        ),
        (
            {"version": "z9", "runs": 3},
            "found a schema that it does not know (z9) and 3 runs. Install the MLflow that wrote it",
        ),
        ({"version": None, "runs": 3}, "found a schema that it does not know (none) and 3 runs"),
    ],
)
def test_a_file_that_this_mlflow_cannot_use(tmp_path, made, message):
    file = tmp_path / "mlflow.db"
    write(file, **made)
    before = file.read_bytes()
    database.ensure(file, lambda part: pytest.fail("it is not ours to make anew"))
    with pytest.raises(TrackerUnreachable) as caught:
        check(file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert file.read_bytes() == before


def damage(file: Path) -> None:
    write(file, runs=5000)
    content = bytearray(file.read_bytes())
    content[100:2000] = b"\xff" * 1900
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.write_text("not a database, but a text of some length\n" * 100), "file is not a database. Move "),
        (damage, "It is damaged. Move "),
    ],
)
def test_a_file_that_sqlite_cannot_read(tmp_path, spoil, message):
    spoil(tmp_path / "mlflow.db")
    with pytest.raises(TrackerUnreachable) as caught:
        database.ensure(tmp_path / "mlflow.db", write)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"expected an MLflow database in {tmp_path}/mlflow.db, found: ")


@pytest.mark.parametrize(
    "make", [Path.mkdir, os.mkfifo, lambda file: os.symlink(file, file), lambda file: file.symlink_to("/dev/full")]
)
def test_what_is_no_file_is_left_as_it_is(tmp_path, make):
    file = tmp_path / "mlflow.db"
    make(file)
    before = os.lstat(file)
    with pytest.raises(TrackerUnreachable, match="found what is no file: a folder, a device, a pipe or a loop of links"):
        database.ensure(file, lambda part: pytest.fail("it is not ours to replace"))
    after = os.lstat(file)
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"], "no lock and no half"


HOLD = "import sqlite3, sys; b = sqlite3.connect(sys.argv[1]); b.execute('BEGIN EXCLUSIVE'); print(flush=True); input()"


def test_a_file_that_another_process_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "WAIT_SECONDS", 0.1)
    write(tmp_path / "mlflow.db")
    command = [sys.executable, "-c", HOLD, str(tmp_path / "mlflow.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(TrackerUnreachable, match=r"database is locked. Another process holds it: wait for it or end it"):
            database.ensure(tmp_path / "mlflow.db", write)
        holder.communicate(b"\n")
    database.ensure(tmp_path / "mlflow.db", write)
