"""Ctrl-C and cancellation end what runs, for certain: also where Python, a library or a command would not let them."""

import json
import os
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pipeline import processes
from tests.conftest import ROOT, wait_for

DROPPED = """
import os, signal, sys, time
from pipeline import stopping

arrived = []

class Finalized:
    def __del__(self):
        try:
            os.kill(os.getpid(), int(sys.argv[1]))
            time.sleep(0.1)
        except BaseException as error:
            arrived.append(error)
            raise  # ... into nowhere: Python prints "Exception ignored in" and goes on

try:
    with stopping.stoppable():
        Finalized()
        assert len(arrived) == 1
        time.sleep(30)
except BaseException as error:
    assert error is arrived[0]
    print(type(error).__name__)
"""

CLOSING = """
import os, signal, threading
from pipeline import stopping

stopping.CLOSING_SECONDS = 1.0
try:
    with stopping.stoppable():
        signal.raise_signal(signal.SIGINT)
finally:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
    print("closing", flush=True)
    lost = threading.Lock()
    lost.acquire()
    lost.acquire()
"""

# A command that hears neither Ctrl-C nor SIGTERM, and says that it runs by a file.
DEAF = "trap '' INT TERM; touch runs; while :; do sleep 0.1; done"

REPRO = """
import json
import os
from flows import repro
from pipeline import processes

repro.HEAR_SECONDS = 0.2
processes.CLOSING_SECONDS = 0.5
try:
    repro._reproduce("deaf")
except KeyboardInterrupt:
    print("left")
"""


def script(text: str, *arguments: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """A Python script that hears signals, also where the tests were started as a background job or by nohup."""

    def hear() -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, "-c", text, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=hear,
    )


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "SystemExit")])
def test_a_signal_that_python_dropped_arrives_all_the_same(number, kind):
    said, _ = script(DROPPED, str(int(number))).communicate(timeout=60)
    assert said.split() == [kind]


def test_closing_is_not_disturbed_and_does_not_last():
    stopped = script(CLOSING)
    said, _ = stopped.communicate(timeout=60)
    assert said.split() == ["closing"]
    assert stopped.returncode == -signal.SIGALRM


def test_signals_are_those_of_before_where_nothing_was_stopped():
    from pipeline import stopping

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    with stopping.stoppable():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_ctrl_c_ends_a_command_that_does_not_hear_it(tmp_path):
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / "dvc.yaml").write_text(f"stages:\n  deaf:\n    cmd: {json.dumps(DEAF)}\n")
    flow = script(REPRO, cwd=tmp_path)
    wait_for("the command", (tmp_path / "runs").exists, seconds=60, every=0.1)
    family = psutil.Process(flow.pid).children(recursive=True)
    assert family

    flow.send_signal(signal.SIGINT)

    said, _ = flow.communicate(timeout=60)
    assert said.split()[-1] == "left"
    assert flow.returncode == 0
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []


HANGUP = """
import signal, sys, time
from pipeline import processes

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
if sys.argv[1] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
processes.hear_hangup()
signal.raise_signal(signal.SIGHUP)
time.sleep(0.5)
print("goes on")
"""


@pytest.mark.parametrize(("how", "status", "said"), [("terminal", 143, ""), ("nohup", 0, "goes on")])
def test_a_terminal_that_closes_ends_a_process_as_sigterm_does(how, status, said):
    ended = script(HANGUP, how)
    assert ended.communicate(timeout=60)[0].strip() == said
    assert ended.returncode == status


def test_a_stage_that_does_not_hear_that_its_flow_died_is_killed(monkeypatch, tmp_path):
    """Each other process of the flow is ended first."""
    monkeypatch.setattr(processes, "CLOSING_SECONDS", 0.4)
    monkeypatch.setattr(processes, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=BytesIO()))
    mark = {processes.FLOW: "a mark"}
    deaf = subprocess.Popen(["bash", "-c", DEAF], cwd=tmp_path, env={**os.environ, **mark, processes.STAGE: "train"})
    server = subprocess.Popen(["sleep", "60"], env={**os.environ, **mark})
    other = subprocess.Popen(["sleep", "60"], env={**os.environ, processes.FLOW: "another mark"})
    wait_for("the command", (tmp_path / "runs").exists, seconds=20, every=0.05)
    processes._end_marked("a mark")
    assert server.poll() is not None
    assert deaf.wait(5) == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_shell_is_ended_before_its_command_whose_end_would_make_it_go_on(tmp_path, monkeypatch):
    shell = subprocess.Popen(["sh", "-c", "sleep 60; touch late"], cwd=tmp_path)
    above = psutil.Process(shell.pid)
    wait_for("the command", above.children, seconds=20, every=0.05)
    send = psutil.Process.send_signal

    def slowly(process: psutil.Process, number: int) -> None:
        send(process, number)
        time.sleep(0.3)  # the shell has time to go on

    monkeypatch.setattr(psutil.Process, "send_signal", slowly)
    processes.end([*above.children(), above], seconds=5)
    assert not above.is_running()
    assert not (tmp_path / "late").exists()
