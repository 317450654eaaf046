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
    path = scratch.root() / name
    (path / "inside").mkdir(parents=True)
    (path / "inside/state").write_text("x")
    for each in (path / "inside/state", path / "inside", path):
        os.utime(each, (time.time() - days * 86400,) * 2)
    return path


def test_what_is_old_is_removed_and_nothing_else():
    old, own, young, held = (left(n, days=d) for n, d in (("old-1", 8), ("own-1", 9), ("young-1", 6), ("held-1", 9)))
    written = left("written-1", days=9)
    (written / "inside/state").write_text("a minute ago")
    scratch.lock_of(old).touch()
    with FileLock(scratch.lock_of(held)):
        assert list(scratch.remove_old(7, except_for=own)) == [old]
    assert sorted(path.name for path in scratch.root().iterdir() if path.is_dir()) == [
        path.name for path in sorted((held, own, written, young))
    ]
    assert not scratch.lock_of(old).exists()


def test_there_may_be_no_scratch_folder():
    assert list(scratch.remove_old(7, except_for=scratch.root() / "x")) == []


def test_where_everything_is_old_the_clock_may_have_jumped():
    left("a-1", days=400)
    left("b-2", days=401)
    assert list(scratch.remove_old(7, except_for=scratch.root() / "x")) == []
    assert len(list(scratch.root().iterdir())) == 2


def test_a_folder_that_goes_away_meanwhile_is_no_error(monkeypatch):
    """Stages of several workers share the scratch folder."""
    gone, young = left("gone-1", days=9), left("young-1", days=0)
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
    recorded, unrecorded, unfinished, held, again = (left(f"s@{n}-0{n}", days=0) for n in range(5))
    outs = {"data/x": "1" * 32, "data/metrics/x.json": "2" * 32}
    for folder in (recorded, unrecorded, held, again):
        scratch.finish(folder, outs)
    scratch.begin(again)
    locked = {"s@0": outs, "s@1": {**outs, "data/x": "3" * 32}, "s@3": outs, "s@4": outs}
    with FileLock(scratch.lock_of(held)):
        scratch.remove_recorded(lambda: locked)
    kept = sorted(path for path in scratch.root().iterdir() if path.is_dir())
    assert kept == [unrecorded, unfinished, held, again]
    assert not scratch.lock_of(recorded).exists()


def test_dvc_lock_is_read_only_if_a_stage_has_ended():
    left("s-1", days=0)
    scratch.remove_recorded(lambda: pytest.fail("it was read"))
