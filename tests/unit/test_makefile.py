"""The Makefile: what arrives of SET."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def make(*words: str, cwd: Path = ROOT) -> str:
    """What make says, as if no other make had started it."""
    env = {
        key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "SET", "PROFILE")
    }
    return subprocess.run(["make", *words], cwd=cwd, env=env, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    "settings",
    [
        ["sparsify.sparsity=0.9"],
        [r"sparsify.prunable=encoder\.layer\.(0|1)\..*", "sparsify.pattern=2:4"],
        [r"sparsify.prunable=query$", "report.title=$(HOME)", "common.model=`id`;#&&<>!?"],
        ["report.title=it's", 'tasks.r8.prepare_task.labels=["no","yes"]', "fetch_local={}"],
    ],
)
def test_settings_arrive_as_they_were_typed(settings):
    command = shlex.split(make("-n", "-o", "install", "run", f"SET={' '.join(settings)}", "PROFILE=tiny"))
    assert command[1:5] == ["-m", "flows.compress", "--profile", "tiny"]
    assert command[5:] == [word for setting in settings for word in ("--set", setting)]
