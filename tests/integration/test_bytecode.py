"""A folder of code is a dep without what is made of it: bytecode, a library."""

import shutil
import subprocess
import sys
from pathlib import Path

from dvc.repo import Repo

from pipeline.hashing import file_md5
from tests.conftest import commit
from tests.integration.tiny import ROOT, stages

PIPELINE = """
stages:
  one:
    cmd: echo 1 > out
    deps: [code]
    outs: [out]
"""


def test_an_import_makes_no_stage_run_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / ".dvcignore", tmp_path)
    (tmp_path / "code").mkdir()
    (tmp_path / "code/__init__.py").touch()
    (tmp_path / "code/module.py").write_text("x = 1\n")
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    commit(tmp_path)
    for words in (["init", "--quiet"], ["repro", "--quiet"]):
        subprocess.run([sys.executable, "-m", "dvc", *words], check=True)
    before = file_md5(Path("code"))
    subprocess.run([sys.executable, "-m", "compileall", "-q", "code"], check=True)
    assert list(Path("code/__pycache__").iterdir())
    assert file_md5(Path("code")) == before
    with Repo() as repo:
        assert repo.status() == {}
    Path("code/module.py").write_text("x = 2\n")
    with Repo() as repo:
        assert set(repo.status()) == {"one"}


def test_a_library_that_was_built_makes_no_stage_run_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / ".dvcignore", tmp_path)
    for folder in ("kernels", "pruneonce/deployment"):
        Path(folder).mkdir(parents=True)
        Path(folder, "code.c").touch()
        before = file_md5(Path(folder))
        Path(folder, "kernels.so").touch()
        assert file_md5(Path(folder)) == before
        Path(folder, "more.c").touch()
        assert file_md5(Path(folder)) != before


def test_there_are_folders_of_code_among_the_deps():
    folders = {
        dep for block in stages().values() for dep in block["deps"] if dep.startswith("pruneonce/") and "." not in dep
    }
    assert len(folders) >= 3
