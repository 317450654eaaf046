"""What keeps the registry's aliases from a model: all that git does not have."""

import shutil
from pathlib import Path

import pytest

from pipeline.hashing import file_md5
from pipeline.params.profiles import MARK
from pipeline.tracking import committed
from pruneonce.errors import PipelineError
from tests.answers import measured
from tests.deployed import FILE, TASK, Project, commit, git


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    monkeypatch.chdir(tmp_path)
    return Project(monkeypatch)


def obstacle(project: Project, **options) -> str:
    """What is said after a run."""
    return committed.obstacle(project.run(measured(), "new", **options), TASK)


def edit(name: str) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + "# edited\n")


def test_a_run_of_what_is_committed_has_none(project):
    """It writes dvc.lock and data/, and the studies their tables; pages and tests are read by no stage."""
    written = ("study/table.json", "study/dvc.lock", "study/patterns/latencies.svg", "study/battery/results/a.json")
    for name in ("docs/a.txt", "tests/a.py", "README.md", "notes.txt", *written):
        edit(name)
    git("add", "--all", ":!notes.txt")
    assert obstacle(project) == ""


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml", "pipeline/a.py", "pipeline/a.md", "study/a.py"])
def test_edits_of_what_a_run_reads_are_named(project, name):
    """A page of Markdown in a package is a template."""
    for present in ("pipeline/b.py", name):
        edit(present)
    commit()
    edit(name)
    assert obstacle(project) == f"{name} differ from the commit {committed.head()[:8]}. Commit them first"
    git("add", name)
    assert obstacle(project).startswith(name)


def test_of_many_files_some_are_named(project):
    for name in "abcd":
        edit(f"{name}.py")
    commit()
    for name in ("a.py", "b.py", "c.py", "d.py", "params.yaml"):
        edit(name)
    assert obstacle(project).startswith("params.yaml, a.py, b.py and 2 more differ from the commit ")


@pytest.mark.parametrize("how", ["from profiles/tiny.yaml", "with overrides: sparsify.sparsity=0.9"])
def test_another_profile_than_the_committed_one_is_named(project, how):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(f"{MARK}{how} (0123456789ab)\n{text}")
    expected = f"params.yaml is not the committed one, but {how}. Commit it, or: git checkout params.yaml"
    assert obstacle(project) == expected
    commit()
    assert obstacle(project) == ""


def test_a_profile_that_is_a_whole_file_is_known_by_its_text(project):
    Path("profiles").mkdir()
    Path("profiles/mine.yaml").write_text(Path("params.yaml").read_text() + "# mine\n")
    commit()
    assert committed.profile() == "own"
    shutil.copy("profiles/mine.yaml", "params.yaml")
    assert obstacle(project).startswith("params.yaml is not the committed one, but from profiles/mine.yaml. Commit it")


def test_an_experiment_is_named(project, monkeypatch):
    monkeypatch.setenv(committed.EXPERIMENT, "bumpy-gnat")
    assert obstacle(project).startswith("this is the experiment bumpy-gnat of `dvc exp run`")


def test_a_copy_of_an_experiment_is_known_by_its_place(project, monkeypatch):
    copy = Path(".dvc/tmp/exps/tmpabc")
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert committed.experiment() == "tmpabc"


def test_values_that_were_reset_since_are_named(project):
    """A run of seed 2, then `git checkout params.yaml`."""
    expected = "common of params.yaml is not what evaluate@topic in dvc.lock was made with. Run again: pruneonce run"
    assert obstacle(project, seed=2) == expected


def test_code_and_data_that_changed_since_are_named(project):
    stages = project.run(measured(), "new")
    export = stages[f"export@{TASK}"]
    export.deps["dvc.yaml"] = "0" * 32
    expected = "dvc.yaml is not what export@topic in dvc.lock was made with. Run again: pruneonce run"
    assert committed.obstacle(stages, TASK) == expected
    del export.deps["dvc.yaml"]
    export.outs[FILE] = "0" * 32
    expected = f"evaluate@topic in dvc.lock was made with another {FILE}. Run again: pruneonce run"
    assert committed.obstacle(stages, TASK) == expected


def test_code_that_no_commit_has_is_named(project):
    """`git diff` is silent on a file that was never added."""
    edit("pruneonce/models/new.py")
    stages = project.run(measured(), "new")
    export = stages[f"export@{TASK}"]
    export.deps["pruneonce/models"] = file_md5(Path("pruneonce/models"))
    expected = "pruneonce/models/new.py, which export@topic reads, is in no commit. Commit it first"
    assert committed.obstacle(stages, TASK) == expected
    commit()
    assert committed.obstacle(stages, TASK) == ""


@pytest.mark.parametrize("place", ["", "sub"])
def test_a_project_may_be_a_folder_of_a_repository(project, monkeypatch, place):
    """Its files are then named from there."""
    if place:
        text = Path("params.yaml").read_text()
        Path(place).mkdir()
        for name in ("params.yaml", "dvc.yaml", ".gitignore"):
            git("mv", name, f"{place}/{name}")
        monkeypatch.chdir(place)
        assert Path("params.yaml").read_text() == text
        commit()
    assert obstacle(project) == ""
    edit("params.yaml")
    assert obstacle(project).startswith("params.yaml differ from")


def test_a_folder_without_git_has_no_commit(project):
    shutil.rmtree(".git")
    assert obstacle(project) == "git has no commit of this folder"


def test_for_a_promotion_the_outs_of_the_run_must_be_committed_too(project):
    stages = project.run(measured(), "new")
    edit("README.md")
    git("add", "--all")
    expected = r"a model of topic that is made from what git has, found: dvc\.lock, README\.md differ from the commit"
    with pytest.raises(PipelineError, match=expected):
        committed.check(stages, TASK)
    commit()
    committed.check(stages, TASK)
