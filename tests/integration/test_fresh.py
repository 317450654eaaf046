"""A clone for one run: what would be deleted with it is an error before anything is computed; the kernels are kept."""

import subprocess
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows import fresh, keeping
from pruneonce.errors import PipelineError


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "clone"
    folder.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "dvc"))
    with Repo.init(str(folder)) as repo, repo.config.edit("global") as settings:
        settings["cache"]["dir"] = str(tmp_path / "cache")
    return folder


def variables(clone: Path) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000", "PRUNEONCE_SCRATCH": str(clone.parent / "scratch")}


def test_a_worker_with_all_three_settings(clone):
    fresh.check(variables(clone), clone)
    fresh.check(variables(clone) | {"MLFLOW_TRACKING_URI": f"sqlite:///{clone.parent}/mlflow.db"}, clone)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_TRACKING_URI", ""),
        ("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"),
        ("PRUNEONCE_SCRATCH", ""),
        ("PRUNEONCE_SCRATCH", ".pruneonce/scratch"),
    ],
)
def test_a_setting_that_points_into_the_clone_is_named(clone, name, value):
    with pytest.raises(PipelineError, match=f"found none for .*export {name}=") as error:
        fresh.check(variables(clone) | {name: value}, clone)
    assert str(error.value).count("export") == 1, "only this one is wrong"


def test_a_cache_in_the_clone_is_an_error(clone, monkeypatch):
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(clone.parent / "none"))
    with pytest.raises(PipelineError, match="found none for DVC's cache: dvc cache dir --global"):
        fresh.check(variables(clone), clone)


def test_the_kernels_of_the_clone_before_are_taken(tmp_path, monkeypatch):
    """And nothing is built: the clone has no sources."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/kernels.so").write_bytes(b"built before")
    assert fresh.put_kernels(tmp_path / "kernels.so", tmp_path / "kept") == ""
    assert (tmp_path / "kernels.so").read_bytes() == b"built before"


def test_kernels_that_cannot_be_built_are_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no kernels/build.py
    said = fresh.put_kernels(tmp_path / "kernels.so", tmp_path / "kept")
    assert said.startswith("The sparse kernels are not measured: ")
    assert "kernels" in said.partition(": ")[2]
    assert not (tmp_path / "kept").exists()


PIPELINE = """
stages:
  report:
    cmd: echo once >> ../ran && echo page > page.md && echo data > data.txt
    deps: [seed]
    outs:
      - data.txt
      - page.md: {cache: false}
"""


def test_a_stage_with_a_page_that_git_keeps_is_restored_in_another_clone(clone, monkeypatch):
    """DVC itself leaves such a stage out of its run cache."""
    for folder in (clone, clone.with_name("other")):
        folder.mkdir(exist_ok=True)
        (folder / "dvc.yaml").write_text(PIPELINE)
        (folder / "seed").write_text("seed")
        monkeypatch.chdir(folder)
        if folder != clone:
            subprocess.run(["git", "init", "-q"], check=True)
            Repo.init().close()
        with Repo() as repo:
            repo.reproduce("report")
        with Repo() as repo:
            keeping.remember(repo, "report")
        assert (folder / "page.md").read_text() == "page\n"
        assert (folder / "data.txt").read_text() == "data\n"
    assert (clone.parent / "ran").read_text() == "once\n"
