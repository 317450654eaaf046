"""The scratch folder: named after all that determines a stage, elsewhere if asked, without what nobody comes back for."""

import os
import time

import pytest
from filelock import FileLock

from pipeline import scratch


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(scratch.PLACE, raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return tmp_path


def test_every_thing_that_determines_a_stage_changes_the_name(monkeypatch):
    names = [
        scratch.of("sparsify", {"a": 1}, {"x": "0"}),
        scratch.of("finetune", {"a": 1}, {"x": "0"}),
        scratch.of("sparsify", {"a": 2}, {"x": "0"}),
        scratch.of("sparsify", {"a": 1}, {"x": "1"}),
    ]
    monkeypatch.setattr(scratch.machine, "processor", lambda: "another")
    names.append(scratch.of("sparsify", {"a": 1}, {"x": "0"}))
    monkeypatch.setattr(scratch.machine, "processor", lambda: "one more")
    monkeypatch.setenv("WORLD_SIZE", "2")
    names.append(scratch.of("sparsify", {"a": 1}, {"x": "0"}))
    assert len(set(names)) == len(names) == 6
    assert names[-1] == scratch.of("sparsify", {"a": 1}, {"x": "0"})


def test_it_lies_in_the_project_or_where_the_variable_says(folder, monkeypatch):
    assert scratch.of("a", {}, {}).parent == scratch.DEFAULT
    monkeypatch.setenv(scratch.PLACE, str(folder / "shared"))
    assert scratch.of("a", {}, {}).parent == folder / "shared"


def left(name: str, *, days: float):
    """A folder that an unfinished stage left so many days ago."""
    path = scratch.root() / f"{name}-0123456789abcdef"
    (path / "inside").mkdir(parents=True)
    (path / "inside/state").write_text("x")
    aged(path / "inside/state", path / "inside", path, days=days)
    return path


def aged(*paths, days: float):
    for path in paths:
        os.utime(path, (time.time() - days * 86400,) * 2)


def looked(*, days: float):
    """A stage looked for old folders so many days ago."""
    scratch.root().mkdir(parents=True, exist_ok=True)
    (scratch.root() / scratch.SEEN).touch()
    aged(scratch.root() / scratch.SEEN, days=days)


def folders():
    return sorted(path for path in scratch.root().iterdir() if path.is_dir())


def test_what_is_old_is_removed_and_nothing_else():
    looked(days=1)
    old, own, young, held = (left(n, days=d) for n, d in (("old", 8), ("own", 9), ("young", 6), ("held", 9)))
    written = left("written", days=9)
    (written / "inside/state").write_text("a minute ago")
    scratch.lock_of(old).touch()
    with FileLock(scratch.lock_of(held)):
        assert list(scratch.remove_old(7, except_for=own)) == [old]
    assert folders() == sorted((held, own, written, young))
    assert not scratch.lock_of(old).exists()


@pytest.mark.parametrize("name", ["thesis", "model-1", "sparsify-0123456789abcde", "0123456789abcdef", "x-0123456789ABCDEF"])
def test_a_folder_of_another_name_is_somebody_elses(name):
    """PRUNEONCE_SCRATCH may name a place that holds more."""
    looked(days=1)
    mine, file = scratch.root() / name, scratch.root() / "notes-0123456789abcdef"
    mine.mkdir()
    file.touch()
    aged(mine, file, days=800)
    assert list(scratch.remove_old(7, except_for=scratch.root() / "x")) == []
    assert mine.is_dir()
    assert file.is_file()


def test_what_a_kill_left_of_a_removal_is_removed():
    looked(days=1)
    path = left("x", days=9)
    gone = path.rename(path.with_name(f"{path.name}.gone"))
    assert list(scratch.remove_old(7, except_for=path)) == [gone]
    assert folders() == []


def test_there_may_be_no_scratch_folder():
    assert list(scratch.remove_old(7, except_for=scratch.root() / "x")) == []


def at(monkeypatch, days: float):
    """The clock says so many days later, also to whoever touches a file."""
    now, real = time.time, os.utime
    monkeypatch.setattr(scratch.time, "time", lambda: now() + days * 86400)
    monkeypatch.setattr(os, "utime", lambda path, times=None: real(path, times or (time.time(),) * 2))


def test_after_a_jump_of_the_clock_every_folder_gets_its_days_again(monkeypatch):
    """A stage has its lock in the folder by then, and the next ones look as well."""
    waiting, own = left("waiting", days=0), left("own", days=0)
    assert list(scratch.remove_old(7, except_for=own)) == []  # the first stage here
    mark = waiting / scratch.PROLONGED
    for days, gone in ((400, []), (400, []), (406, []), (408, [waiting])):
        with monkeypatch.context() as clock:
            at(clock, days)
            before = mark.exists()
            scratch.lock_of(own).touch()
            assert list(scratch.remove_old(7, except_for=own)) == gone, days
            if not before:
                aged(mark, waiting, days=0)  # a new file has the real time


def test_where_stages_are_rare_a_folder_is_removed_all_the_same():
    """Runs are further apart than the days: each one looks like a jump of the clock."""
    own, old = left("own", days=0), left("old", days=30)
    looked(days=8)
    assert list(scratch.remove_old(7, except_for=own)) == []
    aged(old / scratch.PROLONGED, old, days=8)
    looked(days=8)
    assert list(scratch.remove_old(7, except_for=own)) == [old]


def test_a_folder_that_goes_away_meanwhile_is_no_error(monkeypatch):
    """Stages of several workers share the scratch folder."""
    looked(days=1)
    gone, young = left("gone", days=9), left("young", days=0)
    real = scratch._age_seconds

    def age(folder):
        if folder == gone and gone.exists():
            scratch.shutil.rmtree(gone)
            assert real(gone) == 0.0
            return 9 * 86400.0
        return real(folder)

    monkeypatch.setattr(scratch, "_age_seconds", age)
    assert list(scratch.remove_old(7, except_for=young)) == []


def test_what_a_stage_saved_stays_until_its_outs_are_recorded():
    """A kill after the stage has ended, and before DVC has written dvc.lock, loses no training."""
    recorded, unrecorded, unfinished, held, again = (left(f"s@{n}", days=0) for n in range(5))
    outs = {"data/x": "1" * 32, "data/metrics/x.json": "2" * 32}
    for folder in (recorded, unrecorded, held, again):
        scratch.finish(folder, outs)
    scratch.begin(again)
    locked = {"s@0": outs, "s@1": {**outs, "data/x": "3" * 32}, "s@3": outs, "s@4": outs}
    with FileLock(scratch.lock_of(held)):
        scratch.remove_recorded(lambda: locked)
    assert folders() == [unrecorded, unfinished, held, again]
    assert not scratch.lock_of(recorded).exists()


def test_a_file_of_somebody_else_is_no_sign_that_a_stage_ended():
    theirs = scratch.root() / "thesis"
    theirs.mkdir(parents=True)
    (theirs / scratch.DONE).write_text("null")
    scratch.remove_recorded(lambda: {})
    assert theirs.is_dir()


def test_dvc_lock_is_read_only_if_a_stage_has_ended():
    left("s", days=0)
    scratch.remove_recorded(lambda: pytest.fail("it was read"))
