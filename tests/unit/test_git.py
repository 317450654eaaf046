"""git is asked without a lock, and a folder or a machine without it is no crash."""

import os
import subprocess
from pathlib import Path

import pytest

from pipeline import git
from pruneonce.errors import PipelineError


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    subprocess.run(["git", "init", "--quiet"], check=True)
    return tmp_path


def test_a_question_leaves_the_index_as_it_is(repository):
    """`git status` alone writes it anew where only a file's time has changed, and a `git commit` beside it fails."""
    Path("a.txt").write_text("a")
    subprocess.run(["git", "add", "a.txt"], check=True)
    os.utime("a.txt", (1, 1))
    before = Path(".git/index").read_bytes()
    assert git.said("status", "--porcelain") == "A  a.txt"
    assert Path(".git/index").read_bytes() == before
    subprocess.run(["git", "status"], check=True, capture_output=True)
    assert Path(".git/index").read_bytes() != before, "else this test proves nothing"


def test_names_begin_and_end_as_they_do(repository):
    Path(" a b ").touch()
    assert git.said("ls-files", "--others") == " a b "
    Path("c").touch()
    assert git.lines("ls-files", "--others") == [" a b ", "c"]


def test_of_bytes_that_are_no_text_something_is_left(repository):
    Path("a.txt").write_bytes(b"caf\xe9\n")
    subprocess.run(["git", "add", "a.txt"], check=True)
    assert git.said("show", ":a.txt") == "caf\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("words", [("no-such-word",), ("rev-parse", "HEAD"), ("show", "a\0b")])
def test_where_git_fails_it_says_nothing(repository, words):
    assert git.said(*words) is None
    assert git.lines(*words) == []


def test_a_folder_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git.run("status", folder=tmp_path).returncode == 128


def test_a_machine_without_git(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git.said("status") is None
    with pytest.raises(PipelineError, match=r"^expected git, found none\. Install it, and run again\.$"):
        git.run("status")
