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
    deps: [kernels]
    outs: [out]
"""


def test_an_import_or_a_build_makes_no_stage_run_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / ".dvcignore", tmp_path)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/__init__.py").touch()
    (tmp_path / "kernels/module.py").write_text("x = 1\n")
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    commit(tmp_path)
    for words in (["init", "--quiet"], ["repro", "--quiet"]):
        subprocess.run([sys.executable, "-m", "dvc", *words], check=True)
    before = file_md5(Path("kernels"))
    subprocess.run([sys.executable, "-m", "compileall", "-q", "kernels"], check=True)
    assert list(Path("kernels/__pycache__").iterdir())
    Path("kernels/kernels.so").touch()
    assert file_md5(Path("kernels")) == before
    with Repo() as repo:
        assert repo.status() == {}
    Path("kernels/module.py").write_text("x = 2\n")
    with Repo() as repo:
        assert set(repo.status()) == {"one"}


def test_there_are_folders_of_code_among_the_deps():
    folders = {
        dep for block in stages().values() for dep in block["deps"] if dep.startswith("pruneonce/") and "." not in dep
    }
    assert len(folders) >= 3
