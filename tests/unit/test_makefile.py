"""The Makefile: what arrives of SET, and what `make clean` leaves."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def make(*words: str, cwd: Path = ROOT) -> str:
    """What make says, as if no other make had started it."""
    env = {
        key: value
        for key, value in os.environ.items()
        if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "SET", "PROFILE", "SEED", "CASES")
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


@pytest.mark.parametrize(
    ("settings", "seed", "cases", "minutes"),
    [((), "1", "20000", "10"), (("SEED=7", "CASES=10", "MINUTES=0.5"), "7", "10", "0.5")],
)
def test_fuzz_has_a_seed_a_number_of_cases_and_minutes(settings, seed, cases, minutes):
    made, guided = map(shlex.split, make("-n", "-o", "install", "fuzz", *settings).splitlines())
    assert made[1:] == ["-m", "tests.fuzz", "--seed", seed, "--cases", cases]
    assert guided[1:] == ["-m", "tests.fuzz.coverage_guided", "--seed", seed, "--minutes", minutes]


def test_clean_keeps_what_was_computed(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (
        "mlflow.db",
        ".pruneonce/scratch/sparsify-1/step",
        ".venv/x",
        "pruneonce/deployment/kernels.so",
        "data/x",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    make("clean", cwd=tmp_path)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["Makefile", "data/x", "mlflow.db"]
