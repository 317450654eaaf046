"""A flow that is stopped or killed while it starts ends at once, and so does the Prefect server that it has started."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import copy_project, wait_for
from tests.e2e.conftest import environment, prefect_home, started

pytestmark = pytest.mark.slow


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A flow that begins, its output in the file `log`."""
    project = copy_project(tmp_path / "project")
    command = shlex.join([sys.executable, "-m", "flows.compress", "--profile", "tiny"])
    with started(
        command, cwd=project, env=environment(project, prefect_home(project), cold=True), log=tmp_path / "log"
    ) as process:
        yield process


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """What the process has started and what that has, its watcher among them."""
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("to", ["the process", "its group"])
@pytest.mark.parametrize("seconds", [1, 2, 6])  # imports, and Prefect's start
def test_ctrl_c_at_any_moment_of_a_start_ends_it_at_once(seconds, to, starting, tmp_path: Path):
    time.sleep(seconds)
    others = family(starting)
    os.kill(starting.pid, signal.SIGINT) if to == "the process" else os.killpg(starting.pid, signal.SIGINT)
    assert starting.wait(10) == 130
    said = (tmp_path / "log").read_text()
    ours = "Stopped by Ctrl-C. Finished stages are kept; run again to go on."
    if to == "the process":
        assert said.strip().splitlines()[-1] == ours
        assert "Traceback" not in said
    else:  # it reaches Prefect's server too, which may say "Aborted!", or where it was while its modules were imported
        assert said.count(ours) == 1
        assert not re.findall(r'File "[^"]*/(?:flows|pipeline)/', said)
    _, alive = psutil.wait_procs(others, timeout=15)
    assert alive == []


def test_prefects_server_ends_with_a_flow_that_is_killed(starting, tmp_path: Path):
    def server() -> list[psutil.Process]:
        return [child for child in family(starting) if "uvicorn" in " ".join(child.cmdline())]

    wait_for("the server", server, seconds=90, every=0.2, log=tmp_path / "log")
    others = family(starting)
    starting.kill()
    _, alive = psutil.wait_procs(others, timeout=15)
    assert alive == []
