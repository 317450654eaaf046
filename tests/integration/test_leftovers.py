"""What a stage that is gone left in a folder that another reads whole: removed if DVC's cache has it, else left and said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo
from dvc.rwlock import rwlock

from flows import leftovers
from pipeline import lineage

PIPELINE = """
stages:
  fetch:
    foreach: ${names}
    do:
      cmd: >-
        mkdir -p data/raw/${item}/deep && echo >> ran &&
        echo ${item} | tee data/raw/${item}/text > data/raw/${item}/deep/text
      deps: [source]
      outs: ["data/raw/${item}"]
  count:
    cmd: cat data/raw/*/text > count.txt
    deps: [data/raw]
    outs: [count.txt]
"""


def dvc(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "dvc", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def name(*sources: str) -> None:
    Path("params.yaml").write_text(f"names: [{', '.join(sources)}]\n")


@pytest.fixture
def counted(tmp_path, monkeypatch) -> Path:
    """A repository in which three sources were fetched and counted; params.yaml names only `a` now."""
    monkeypatch.chdir(tmp_path)
    dvc("init", "--no-scm", "--quiet")
    Path("dvc.yaml").write_text(PIPELINE)
    Path("source").touch()
    name("a", "b", "c")
    dvc("repro")
    assert Path("count.txt").read_text() == "a\nb\nc\n"
    name("a")
    return tmp_path


def clear() -> list[str]:
    with Repo() as repo:
        return leftovers.clear(repo)


def folders() -> list[str]:
    return sorted(path.name for path in Path("data/raw").iterdir())


def test_what_dvc_has_is_removed_and_comes_back_from_its_cache(counted):
    name("a", "b")
    said = clear()
    assert [line.partition(",")[0] for line in said] == ["data/raw/c: removed"]
    assert folders() == ["a", "b"]
    dvc("repro")
    assert Path("count.txt").read_text() == "a\nb\n"
    assert clear() == []
    name("a", "b", "c")
    dvc("repro")
    assert Path("count.txt").read_text() == "a\nb\nc\n"
    assert Path("ran").read_text().count("\n") == 3, "nothing was fetched twice"


def test_what_dvc_does_not_have_as_it_stands_is_left_and_said(counted):
    Path("data/raw/b/deep/text").write_text("edited")
    md5 = lineage.file_md5(Path("data/raw/c/text"))
    Path(f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}").unlink()
    Path("data/raw/by-hand").mkdir()
    Path("data/raw/a-file").touch()
    said = clear()
    assert [line.partition(",")[0] for line in said] == [f"data/raw/{n}: left there" for n in ("b", "by-hand", "c")]
    assert folders() == ["a", "a-file", "b", "by-hand", "c"]


@pytest.mark.parametrize("what", ["data/raw/c", "data/raw/c/text"])
def test_what_dvc_has_damaged_is_left_and_said(counted, what):
    """An object of the cache is believed by its bytes: the folder may be the last whole copy."""
    name("a", "b")
    md5 = lineage.file_md5(Path(what))
    stored = Path(f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}")
    right = stored.read_bytes()
    for damage in (b"x\n", b"", b"[{", b"\xff\xfe", b"{}", b"[]", b"[1]", b'[{"relpath": "text"}]'):
        stored.unlink()
        stored.write_bytes(damage)
        assert [line.partition(",")[0] for line in clear()] == ["data/raw/c: left there"]
        assert Path("data/raw/c/text").read_text() == "c\n"
    stored.write_bytes(right)
    assert [line.partition(",")[0] for line in clear()] == ["data/raw/c: removed"]


def test_what_a_stage_reads_is_no_leftover(counted):
    """A source that was fetched may be what a person's own stage begins with."""
    Path("dvc.yaml").write_text(PIPELINE + "  mine: {cmd: cat data/raw/b/text, deps: [data/raw/b/text]}\n")
    assert [line.partition(",")[0] for line in clear()] == ["data/raw/c: removed"]
    assert folders() == ["a", "b"]


def test_what_a_stage_under_way_reads_is_left_and_said(counted):
    with Repo() as repo, rwlock(repo.tmp_dir, repo.fs, "dvc repro", [str(counted / "data/raw")], [], False):
        busy = json.loads(Path(".dvc/tmp/rwlock").read_text())
    for reader in (entry for readers in busy["read"].values() for entry in readers):
        reader["pid"] = os.getppid()  # another process, that is there
    Path(".dvc/tmp/rwlock").write_text(json.dumps(busy))
    said = "left there, for a stage that is under way reads it"
    assert clear() == [f"data/raw/{n}: {said}" for n in "bc"]
    assert folders() == ["a", "b", "c"]


def test_what_dvc_tracks_by_itself_is_no_leftover(counted):
    Path("data/raw/added").mkdir()
    Path("data/raw/added/text").write_text("added")
    dvc("add", "--quiet", "data/raw/added")
    assert [line.partition(",")[0] for line in clear()] == [f"data/raw/{n}: removed" for n in "bc"]
    assert folders() == ["a", "added", "added.dvc"]
