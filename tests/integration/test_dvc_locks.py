"""What killed commands of DVC left in its list of paths: cleared where nobody can use them, else left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from dvc.lock import make_lock

from flows import locks

LISTS = [Path(folder) / ".dvc/tmp/rwlock" for folder in ("", "study", "study/patterns")]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for file in LISTS:
        file.parent.mkdir(parents=True)
    return tmp_path


@pytest.fixture
def program():
    """A program that has the number of a command of DVC now."""
    with subprocess.Popen(["sleep", "60"]) as other:
        yield other.pid
        other.kill()


def entry(pid: int) -> dict:
    return {"pid": pid, "cmd": f"dvc repro {pid}"}


def listed(file: Path) -> dict:
    return json.loads(file.read_text())


@pytest.mark.parametrize("file", LISTS, ids=str)
def test_entries_of_a_number_that_another_program_has_are_struck_out(file, folder, program):
    mine, alive = entry(os.getpid()), entry(os.getppid())
    ended = subprocess.Popen(["true"])
    ended.wait()
    gone, other = entry(ended.pid), entry(program)
    file.write_text(
        json.dumps({"write": {"/a": other, "/b": alive, "/c": gone}, "read": {"/d": [other, alive], "/e": [mine]}})
    )
    os.utime(file, (2e9, 2e9))  # after every process began
    parent = psutil.Process(os.getppid()).cmdline()
    kept = [alive] if any("python" in word or "dvc" in word for word in parent) else []

    said = locks.clear()

    assert listed(file) == {
        "write": {**({"/b": alive} if kept else {}), "/c": gone},  # DVC strikes that one out itself
        "read": {"/d": kept} if kept else {},
    }
    assert [line for line in said if f"process {program} (dvc repro {program}) was killed" in line]
    assert all(line.startswith(f"{file}: process ") for line in said)


def test_a_python_that_began_after_the_list_was_written_is_not_in_it(folder):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as later:
        LISTS[0].write_text(json.dumps({"write": {"/a": entry(later.pid)}, "read": {}}))
        os.utime(LISTS[0], (2e9, 2e9))
        assert locks.clear() == [], "it may be in it"
        os.utime(LISTS[0], (1e9, 1e9))
        (line,) = locks.clear()
        later.kill()
    assert f"process {later.pid}" in line
    assert listed(LISTS[0]) == {"write": {}, "read": {}}


@pytest.mark.parametrize("text", ["", '{"write": {', "[]", '{"write": {"a": {"pid": "x"}}}'])
def test_a_damaged_list_is_removed_where_no_dvc_is_at_work(text, folder):
    LISTS[0].write_text(text)
    (line,) = locks.clear()
    assert line.startswith(".dvc/tmp/rwlock was damaged")
    assert not LISTS[0].exists()
    assert locks.clear() == []


def test_a_damaged_list_stays_while_a_stage_runs(folder):
    LISTS[0].write_text("{")
    with subprocess.Popen(["sleep", "60"], env={**os.environ, "DVC_ROOT": str(folder)}) as stage:
        assert locks.clear() == []
        stage.kill()
    assert LISTS[0].exists()


def test_a_damaged_list_stays_while_dvc_holds_its_lock(folder, monkeypatch):
    monkeypatch.setattr("dvc.lock.DEFAULT_TIMEOUT", 0.1)
    LISTS[0].write_text("{")
    with make_lock(".dvc/tmp/lock", tmp_dir=".dvc/tmp"):
        assert locks.clear() == []
    assert LISTS[0].exists()
    with make_lock(".dvc/tmp/rwlock.lock", tmp_dir=".dvc/tmp"):
        assert locks.clear() == [], "another command is at the list"
    assert LISTS[0].exists()
