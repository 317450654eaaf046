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
    monkeypatch.setenv("WORLD_SIZE", "2")
    names.append(scratch.of("sparsify", {"a": 1}, {"x": "0"}))
    assert len(set(names)) == len(names) == 5
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


OUTS = {"data/model": "1" * 32, "data/metrics.json": "2" * 32}


def test_what_has_ended_stays_until_dvc_has_recorded_it(folder):
    """A process of DVC may be killed between the end of a stage and its entry in dvc.lock."""
    own = left("sparsify@a-1", days=0)
    scratch.finish(own, OUTS)
    for recorded in ({}, {"sparsify@a": {**OUTS, "data/model": "3" * 32}}, {"other": OUTS}):
        scratch.remove_recorded(lambda recorded=recorded: recorded)
        assert own.exists()
    scratch.remove_recorded(lambda: {"sparsify@a": OUTS})
    assert not own.exists()


def test_what_is_at_work_again_or_was_never_done_is_not_removed(folder):
    again, never = left("sparsify-1", days=0), left("finetune-1", days=0)
    scratch.finish(again, OUTS)
    with FileLock(scratch.lock_of(again)):
        scratch.remove_recorded(lambda: {"sparsify": OUTS, "finetune": OUTS})
    scratch.begin(again)
    scratch.remove_recorded(lambda: {"sparsify": OUTS, "finetune": OUTS})
    assert again.exists()
    assert never.exists()


def test_dvc_is_not_asked_where_nothing_has_ended(folder):
    left("sparsify-1", days=0)
    scratch.remove_recorded(lambda: pytest.fail("it was asked"))
