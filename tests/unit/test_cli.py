"""A project's commands: whatever is typed ends in an answer, one line, or the word on how it is used."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.commands import plan, register

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "pipeline.cli"]
# Unbuffered, argparse itself meets the end of a pipe in --help, and says nothing of it.
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}, "PYTHONPATH": str(ROOT)}


def call(monkeypatch, capsys, *words):
    """(exit code, what was said) of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["pruneonce", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--tflops", "--tokens-per-second"])
@pytest.mark.parametrize(
    "number", ["nan", "inf", "-inf", "0", "-0.0", "-1", "1e400", "1e-400", "1e300", "", "x", "9" * 5000, "\ud800", "1e13"]
)
def test_a_speed_is_a_number_that_a_machine_may_have(monkeypatch, capsys, flag, number):
    code, said = call(monkeypatch, capsys, "plan", "tiny", f"{flag}={number}")
    assert code == 2
    assert f"argument {flag}: expected a number from 1e-06 to 1e+12, found '{number[:5]}"[:80] in said or number == "\ud800"
    assert len(said) < 700


@pytest.mark.parametrize(
    "number", ["0", "-1", str(10**30), "1.5", "nan", "", "x", "9" * 5000, "1_000", "٣", "1000001", "1e3"]
)
def test_gpus_are_counted(monkeypatch, capsys, number):
    code, said = call(monkeypatch, capsys, "plan", "tiny", f"--gpus={number}")
    assert code == 2
    assert f"argument --gpus: expected a whole number from 1 to 1000000, found '{number[:5]}" in said
    assert len(said) < 700


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("8", 8), ("1000000", 1_000_000)])
def test_what_is_a_count(text, number):
    assert plan._count(text) == number


@pytest.mark.parametrize(("text", "number"), [("1", 1.0), ("1e5", 1e5), ("0.5", 0.5), ("1e12", 1e12)])
def test_what_is_a_speed(text, number):
    assert plan._speed(text) == number


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_a_name_that_no_file_has(monkeypatch, capsys, name):
    assert call(monkeypatch, capsys, "trace", name)[0] == 2


@pytest.mark.parametrize(("word", "close"), [("traec", "trace"), ("unpak", "unpack")])
def test_an_unknown_word_is_a_wrong_use_and_the_closest_is_named(monkeypatch, capsys, word, close):
    code, said = call(monkeypatch, capsys, word)
    assert code == 2
    assert said.endswith(f"found {word!r}. Did you mean {close}?\n")


def test_whatever_the_disk_says_is_one_line(monkeypatch, capsys):
    def full(args):
        raise OSError(28, "No space\nleft on device")

    monkeypatch.setattr(register, "lines", full)
    code, _ = call(monkeypatch, capsys, "register")
    assert code == "DataError: expected files that can be read and written, found: [Errno 28] No space left on device"


def test_ctrl_c_is_a_word_and_its_code(monkeypatch, capsys):
    def stopped(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(register, "lines", stopped)
    assert call(monkeypatch, capsys, "register") == (130, "\nStopped by Ctrl-C.\n")


@pytest.mark.parametrize(
    "words",
    [["--help"], ["plan", "--help"], ["plan", "tiny"]],
    ids=lambda words: " ".join(words),
)
def test_a_reader_who_leaves_ends_it_quietly(words):
    """As `head` does. A pipe that nobody reads any more, before the first byte."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        done = subprocess.run(
            [*COMMAND, *words], cwd=ROOT, env=ENVIRONMENT, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_an_output_that_is_full_or_closed():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, "--help"], env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    assert done.returncode == 1
    assert done.stderr.startswith("DataError: expected files that can be read and written, found: [Errno 28]")
    assert done.stderr.count("\n") == 1
    closed = f"{sys.executable} -m pipeline.cli --help >&-"
    done = subprocess.run(closed, shell=True, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr.split(":")[0]) == (0, "usage"), "argparse takes the other stream"


def test_a_pipe_is_not_waited_for(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    assert "Error: expected a file at pipe, found a device or a pipe." in call(monkeypatch, capsys, "trace", "pipe")[0]


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_folder_that_the_project_lies_in_is_not_read_whole(monkeypatch, capsys, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    assert "the folder that this project lies in" in call(monkeypatch, capsys, "trace", name)[0]


def test_the_options_of_all_commands_need_no_large_import():
    code = "import sys; from pipeline import cli; cli._parser(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert {"pydantic", "ruamel.yaml", "numpy", "torch"}.isdisjoint(done.stdout.split())
