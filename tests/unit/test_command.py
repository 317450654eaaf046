"""The command `pruneonce`: files are packed anywhere, a project's commands start in its folder, a mistake is one line."""

import argparse
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import helper

from pipeline import cli
from pruneonce import command

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "pruneonce.command"]
# Unbuffered, argparse itself meets the end of a pipe in --help, and says nothing of it.
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}, "PYTHONPATH": str(ROOT)}


class Started(Exception):
    """Another program took the place of this process."""


def start(program, line):
    raise Started(line)


@pytest.fixture
def call(monkeypatch, capsys):
    """words -> (exit code, standard output, standard error) of the command in this process."""

    def run(*words: str):
        monkeypatch.setattr(sys, "argv", ["pruneonce", *words])
        monkeypatch.setattr(os, "execv", start)
        with pytest.raises(SystemExit) as ended:
            command.main()
        return (ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def project(empty) -> Path:
    (empty / "pipeline").mkdir()
    for file in command.PROJECT_FILES:
        (empty / file).touch()
    return empty


@pytest.mark.parametrize("word", ["pack", "unpack"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "PackError: expected a file at ., found a folder."),
        (".", "PackError: expected a file at ., found a folder."),
        ("/", "PackError: expected a file at /, found a folder."),
        ("..", "PackError: expected a file at .., found a folder."),
        ("a\0b", "PackError: expected a file at a b, found none: "),
        ("x" * 300, "Error: expected "),
        ("x" * 5000, "Error: expected "),
        ("nowhere/x", "PackError: expected a file at nowhere/x, found none"),
    ],
)
def test_a_file_that_cannot_be_packed_is_one_line(call, empty, word, name, message):
    code = call(word, name)[0]
    assert message in code
    assert "\n" not in code
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize("word", ["pack", "unpack"])
def test_a_pipe_is_not_waited_for(call, empty, word):
    os.mkfifo("pipe")
    assert "Error: expected a file at pipe, found a device or a pipe." in call(word, "pipe")[0]


def test_help_lists_both_kinds_of_commands(call, empty):
    """What it says of a project's commands is what the project says."""
    code, said, _ = call("--help")
    assert code == 0
    for name in command.OWN:
        assert re.search(rf"^ +{name} +\w", said, re.MULTILINE)
    (parser,) = [action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)]
    listed = re.findall(r"^    (\w+) +(\w.*)$", command.PROJECT_COMMANDS, re.MULTILINE)
    assert len(listed) >= 3
    assert listed == [(choice.dest, choice.help) for choice in parser._choices_actions]
    assert command.PROJECT_COMMANDS.strip() in said


@pytest.mark.parametrize("words", [[], ["-x"], ["--", "plan"], ["pack"], ["pack", "a", "b", "c"]])
def test_a_wrong_use_is_shown_the_right_one(call, project, words):
    code, _, said = call(*words)
    assert code == 2
    assert said.startswith("usage: pruneonce ")


@pytest.mark.parametrize(
    "words", [["plan", "tiny", "--gpus", "8"], ["trace", "a b"], ["plan", "--help"], ["of-this-project"]]
)
def test_another_command_becomes_the_projects(monkeypatch, project, words):
    monkeypatch.setattr(os, "execv", start)
    monkeypatch.setattr(sys, "argv", ["pruneonce", *words])
    with pytest.raises(Started) as started:
        command.main()
    assert started.value.args[0] == [sys.executable, "-m", "pipeline.cli", *words]


@pytest.mark.parametrize("word", ["plan", "trace", "new", ""])
def test_outside_of_a_project_its_commands_are_one_line(call, empty, word):
    code = call(word)[0]
    assert code == (
        f"PipelineError: expected a project's folder for `pruneonce {word}`, with dvc.yaml and pipeline/cli.py, found none. "
        "Change to one; outside of projects there are: pack, unpack."
    )


def test_inside_a_projects_folder_the_way_back_is_named(call, project, monkeypatch):
    (project / "data/raw").mkdir(parents=True)
    monkeypatch.chdir(project / "data/raw")
    assert f"found none. Change to {project}; outside" in call("trace", "x")[0]


def test_without_the_pipelines_packages_the_extra_is_named(call, project, monkeypatch):
    def missing(name):
        raise command.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(command.metadata, "version", missing)
    code = call("plan")[0]
    assert code.startswith("PipelineError: expected what the project's commands import, found no DVC")
    assert code.endswith("Install it: make install")


def test_the_librarys_process_becomes_the_projects():
    done = subprocess.run([*COMMAND, "plan", "--help"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--tokens-per-second" in done.stdout


@pytest.mark.parametrize("words", [["--help"], ["pack", "model.onnx"]], ids=" ".join)
def test_a_reader_who_leaves_ends_it_quietly(tmp_path, words):
    """As `head` does. A pipe that nobody reads any more, before the first byte."""
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [])), tmp_path / "model.onnx")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        done = subprocess.run(
            [*COMMAND, *words], cwd=tmp_path, env=ENVIRONMENT, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_name_that_is_no_text_is_said_as_well_as_can_be(tmp_path):
    """A file's name is bytes: what is no UTF-8 of it is said by its escape, where the terminal is ASCII alone too."""
    done = subprocess.run(
        [*COMMAND, "pack", b"\xff.onnx"],
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr == b"PackError: expected a file at \\udcff.onnx, found none: No such file or directory.\n"
