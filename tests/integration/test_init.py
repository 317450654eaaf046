"""`pruneonce init` in an empty folder, as a new user types it: a project whose stages run outside of the clone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.params.reading import read_yaml
from pruneonce import projects
from tests.conftest import ROOT, TINY

BIN = Path(sys.executable).parent
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSAFEPATH")}
# The folder of the clone on the path, as an installed package is.
ENVIRONMENT |= {"PYTHONPATH": str(ROOT), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-P", "-m", *words]
    return subprocess.run(
        line, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=180
    )


def git(*words: str, cwd: Path) -> str:
    return subprocess.run(["git", *words], cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    (folder / "topics.tsv").write_bytes((TINY / "text/topic-train.tsv").read_bytes())
    (folder / "json.py").write_text("raise SystemExit('this file is no module')\n")
    (folder / ".gitignore").write_text("/notes\n")
    words = ("init", ".", "--data", "topics.tsv", "--model", str(TINY / "model"), "--own-texts")
    done = run("pruneonce.command", *words, cwd=folder)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "Guessed: text 'text', label 'label', kind classification\n" in done.stdout
    assert done.stdout.endswith("\nNext: pruneonce run\n")
    return folder


def test_a_new_project_is_one_commit_of_its_files(project):
    assert git("log", "--format=%s", cwd=project) == "A project of pruneonce\n"
    listed = git("ls-files", cwd=project).split()
    assert sorted(name for name in listed if not name.startswith(".dvc/")) == [
        *(".dvcignore", ".gitignore", "README.md", "dvc.yaml", "flow.py", "params.yaml", "prefect.toml", "prefect.yaml"),
    ]
    assert git("status", "--porcelain", cwd=project) == "?? json.py\n"  # of the data, DVC keeps a copy
    assert (project / ".gitignore").read_text().startswith("/notes\n/.venv/\n")


def test_its_stages_run_by_dvc_with_the_packages_code(project):
    done = run("dvc", "repro", "--quiet", "prepare_task@topics", "list_tasks", cwd=project)
    assert done.returncode == 0, done.stderr
    sizes = json.loads((project / "data/metrics/prepare_task/topics.json").read_text())
    assert {name: sizes[name]["rows"] for name in ("train", "validation", "test")} == {
        "train": 128,
        "validation": 16,
        "test": 16,
    }
    stages = read_yaml(project / "dvc.lock")["stages"]
    assert {stage["params"]["params.yaml"]["pruneonce"] for stage in stages.values()} == {projects.installed()}
    ignored = git("status", "--porcelain", "--untracked-files=all", cwd=project).split()
    assert ignored == ["??", "dvc.lock", "??", "json.py"]


def test_another_version_stops_a_command_and_a_stage(project):
    before = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(before.replace(f'"{projects.installed()}"', '"9.9.9"'))
    try:
        for words in (("pruneonce.command", "run"), ("pruneonce.stage", "list_tasks")):
            done = run(*words, cwd=project)
            assert done.returncode == 1
            assert done.stderr.startswith("PipelineError: expected pruneonce 9.9.9, which params.yaml names, found ")
    finally:
        (project / "params.yaml").write_text(before)


def test_a_worker_of_prefects_finds_the_flow(project):
    load = "from prefect.flows import load_flow_from_entrypoint as load; print(load('flow.py:compress').name)"
    line = [sys.executable, "-P", "-c", load]
    done = subprocess.run(line, cwd=project, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "compress\n"), done.stderr
