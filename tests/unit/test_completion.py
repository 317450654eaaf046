"""Completion in a real bash; in zsh and fish where they are installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.commands import completion as of_project
from pruneonce import command
from pruneonce.commands import completion

ROOT = Path(__file__).parents[2]
DRIVER = """
source ./script
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_shtab_pruneonce
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell: str, *, project: bool) -> str:
    parser, words = (cli._parser(), of_project) if project else (command._parser(), completion)
    return "\n".join(words.lines(parser.parse_args(["completion", shell])))


@pytest.fixture
def bash(tmp_path, monkeypatch):
    """(script, words up to TAB) -> what bash offers in a folder with a profile, a lock file and a model."""
    (tmp_path / "profiles/tasks").mkdir(parents=True)
    (tmp_path / "profiles/tiny.yaml").touch()
    (tmp_path / "profiles/bert-base.yaml").touch()
    (tmp_path / "int8.onnx").touch()
    (tmp_path / "driver").write_text(DRIVER)

    def offered(text: str, *words: str) -> set[str]:
        (tmp_path / "script").write_text(text)
        done = subprocess.run(
            ["bash", "driver", *words], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True
        )
        assert done.stderr == ""
        return set(done.stdout.split())

    return offered


def test_bash_completes_every_command_with_its_options(bash):
    text = script("bash", project=True)
    assert bash(text, "pruneonce", "") == {*command.PROJECT_COMMANDS, *command.commandline.LIBRARY}
    assert bash(text, "pruneonce", "acc") == {"accelerate"}
    assert bash(text, "pruneonce", "plan", "--t") == {"--tflops", "--tokens-per-second"}
    assert bash(text, "pruneonce", "inspect", "--execution", "") == {"auto", "stock", "sparse"}
    assert bash(text, "pruneonce", "plan", "") == {"tiny", "bert-base"}
    assert bash(text, "pruneonce", "plan", "b") == {"bert-base"}
    assert bash(text, "pruneonce", "pack", "int") == {"int8.onnx"}


@pytest.mark.parametrize("name", ["$(touch found)", "`touch found`", "a;touch found"])
def test_bash_runs_nothing_that_a_file_of_the_folder_names(bash, tmp_path, name):
    (tmp_path / f"profiles/{name}.yaml").touch()
    (tmp_path / "dvc.lock").write_text(f"stages:\n  {name.replace(' ', '${IFS}')}:\n  a@b:\n")
    (tmp_path / "params.yaml").write_text(f"tasks:\n  {name.replace(' ', '${IFS}')}: {{}}\n  r8: {{}}\n")
    text = script("bash", project=True)
    assert bash(text, "pruneonce", "plan", "") == {"tiny", "bert-base"}
    assert bash(text, "pruneonce", "why", "") == {"a@b"}
    assert bash(text, "pruneonce", "promote", "") == {"r8"}
    assert not (tmp_path / "found").exists()


def test_outside_of_a_project_its_commands_are_known_by_name(bash):
    text = script("bash", project=False)
    assert bash(text, "pruneonce", "") == {*command.PROJECT_COMMANDS, *command.commandline.LIBRARY}
    assert bash(text, "pruneonce", "inspect", "--thr") == {"--threads"}
    assert "--tflops" not in text


@pytest.mark.parametrize(
    ("kind", "file", "text", "words"),
    [
        ("profile", "profiles/x y.yaml", "", ["x y"]),
        (
            "stage",
            "dvc.lock",
            "schema: '2.0'\nstages:\n  a@b-1:\n    cmd: x\n    deps:\n    - path: q\n  c:\n    cmd: y\n",
            ["a@b-1", "c"],
        ),
        (
            "task",
            "params.yaml",
            "report:\n  title: x\ntasks:\n  r8: {}\n  # no\n  t-2:\n    kind: x\nz:\n  not: 1\n",
            ["r8", "t-2"],
        ),
    ],
)
def test_the_words_are_those_of_the_folder(tmp_path, kind, file, text, words):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    done = subprocess.run(["sh", "-c", completion.WORDS[kind]], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == words
    empty = subprocess.run(["sh", "-c", completion.WORDS[kind]], cwd=tmp_path / "..", capture_output=True, text=True)
    assert empty.stderr == ""


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_script_is_one_that_its_shell_reads(shell, tmp_path):
    text = script(shell, project=True)
    assert all(name in text for name in (*command.PROJECT_COMMANDS, "tokens-per-second"))
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine")
    (tmp_path / "script").write_text(text)
    subprocess.run([shell, "-n", "script"], cwd=tmp_path, check=True, timeout=30)


def test_another_shell_is_a_wrong_use():
    done = subprocess.run(
        [sys.executable, "-m", "pruneonce.command", "completion", "tcsh"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "invalid choice: 'tcsh'" in done.stderr
