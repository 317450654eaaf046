"""What a person writes into params.yaml reaches no shell: words stay words, a path stays a path."""

import pytest

from tests.integration.conftest import Project

ODD = ["it's $HOME `touch hacked`.csv", '"; touch hacked; ".csv', "-n  *.csv"]


def run(project: Project, *words: str, **environment: str):
    """Run `python` or `dvc` on the project's own code."""
    return project.run(*words, PYTHONPATH=str(project.folder), **environment)


def launched(project: Project, launcher: str):
    project.edit(lambda document: document.update(launcher=launcher))
    return run(project, "python", "-m", "stages.sparsify", "--teacher", "$(touch hacked)", "--model", "a  b")


def test_the_words_of_a_launcher_are_arguments(project):
    done = launched(project, 'echo $(touch hacked) ; touch hacked "it\'s  one" `touch hacked` > hacked')
    words = "$(touch hacked) ; touch hacked it's  one `touch hacked` > hacked"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{words} -m stages.sparsify --teacher $(touch hacked) --model a  b\n"
    assert not (project.folder / "hacked").exists()


@pytest.mark.parametrize(
    ("launcher", "said"),
    [
        ("no-such-launcher --x", "expected launcher in params.yaml to begin with a command, found 'no-such-launcher'"),
        ("echo 'a", "launcher: No closing quotation"),
        ("", "launcher: String should match pattern"),
    ],
)
def test_a_launcher_that_is_none_is_one_line(project, launcher, said):
    done = launched(project, launcher)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_launched_process_starts_no_other(project):
    """Else `torchrun` would start itself for ever."""
    project.edit(lambda document: document.update(launcher="no-such-launcher"))
    for name in ("LOCAL_RANK", "PRUNEONCE_LAUNCHED"):
        done = run(project, "python", "-m", "stages.sparsify", **{name: "0"})
        assert "arguments are required" in done.stderr


@pytest.mark.parametrize("name", ODD)
def test_dvc_fetches_a_local_source_whatever_its_path_is_called(project, name):
    source = {"path": f"given/{name}", "members": {"train.csv": "."}, "sha256": None}
    project.edit(lambda document: document["fetch_local"].update(odd=source))
    (project.folder / "given").mkdir()
    (project.folder / "given" / name).write_text("text,label\na,b\n")
    done = run(project, "dvc", "repro", "--single-item", "fetch_local@odd")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project.folder / "data/raw/odd/train.csv").read_text() == "text,label\na,b\n"
    assert not (project.folder / "hacked").exists()
