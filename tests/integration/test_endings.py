"""A run that is ended before its time, by whatever: nothing stays behind, and the next run goes on from the checkpoint.

PRUNEONCE_ALL_ENDINGS=1 tries every case of tests/endings.py, which takes minutes.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.endings import NOTES, SILENT, by_system
from tests import endings, warm
from tests.conftest import ROOT, commit, wait_for
from tests.endings import SECONDS, SHORT, Case

STEPS = 1000
TRAIN = f"""
import os, time
from pathlib import Path
from pipeline.history import Log
from pipeline.params.sections import Common
from pipeline.stage import Dep, Metrics, Out, main

def run(seed: Dep, model: Out, *, common: Common, log: Log) -> Metrics:
    saved = log.scratch / "step"
    begin = int(saved.read_text()) if saved.exists() else 0
    print(f"goes on from step {{begin}}", flush=True)
    for step in range(begin, {STEPS}):
        time.sleep(0.05 if Path("slow").exists() else 0)
        log(step, {{"loss": float(step)}})
        if os.environ.get("RANK", "0") == "0":
            saved.with_suffix(".part").write_text(str(step + 1))
            saved.with_suffix(".part").replace(saved)
    model.write_text(seed.read_text())
    return {{"steps": {STEPS}}}

if __name__ == "__main__":
    main(run)
"""
PIPELINE = """
stages:
  train:
    cmd: python train.py --seed seed.txt --model data/model --metrics data/train.json
    deps: [seed.txt, train.py]
    outs: [data/model]
    metrics: [{data/train.json: {cache: false}}]
"""
# What flows.compress does around a stage, without Prefect's server, whose start takes seconds.
FLOW = """
from flows import stopping

stopping.listen()
import signal, sys
from prefect.logging import disable_run_logger
from flows import compress, locks, repro, trouble
from pipeline import processes

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
processes.guard()
with trouble.one_line(), processes.alone(compress.LOCK, "run in this folder"), disable_run_logger():
    print(*locks.clear())
    print(repro.repro.fn("train").result)
"""
COMMANDS = {"flow": [sys.executable, "flow.py"], "dvc": [sys.executable, "-m", "dvc", "repro", "train"]}
WARM = {"flow": ["python", "flow.py"], "dvc": ["dvc", "repro", "train"]}  # as tests/warm.py starts them


@pytest.fixture(scope="module")
def made(tmp_path_factory, tracking_uri: str) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for name, text in (("train.py", TRAIN), ("flow.py", FLOW), ("dvc.yaml", PIPELINE), ("seed.txt", "seed"), ("slow", "")):
        (folder / name).write_text(text)
    shutil.copy(ROOT / "profiles/tiny.yaml", folder / "params.yaml")
    commit(folder)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=folder, check=True)
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "project", symlinks=True))


@pytest.fixture
def env(tracking_uri: str) -> Mapping[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PRUNEONCE_", "DVC_", "PREFECT_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": tracking_uri, "SHELL": "/bin/sh"}


def runs(tracking_uri: str, folder: Path) -> list:
    """The runs of the stage in this folder: the id stands in its scratch folder."""
    client = MlflowClient(tracking_uri)
    names = [path.read_text() for path in folder.glob(".pruneonce/scratch/train-*/run")]
    return [client.get_run(name) for name in names]


def test_a_second_run_says_who_holds_the_folder(project: Path, env, tmp_path):
    with endings.begin(COMMANDS["flow"], project, tmp_path / "log", env) as run:
        endings.wait_until_saved(run, "train")
        second = {
            name: subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=100)
            for name, command in COMMANDS.items()
        }
        pid = run.process.pid
    assert second["flow"].returncode == 1
    assert re.search(
        rf"AlreadyRunning: expected no other run in this folder, found one: process {pid} since [-0-9]+ [:0-9]+, "
        rf"\S+ flow\.py\. Wait for it, or stop it with kill {pid}\.$",
        second["flow"].stderr.strip(),
    )
    assert second["dvc"].returncode == 255
    assert f"(PID {pid}): flow.py" in second["dvc"].stderr, "DVC's own words"


@pytest.mark.parametrize("case", endings.CASES if os.environ.get("PRUNEONCE_ALL_ENDINGS") else SHORT, ids=str)
def test_nothing_stays_behind_and_the_next_run_goes_on(case: Case, project: Path, env, tracking_uri, tmp_path):
    with endings.begin(COMMANDS[case.runner], project, tmp_path / "log", env) as run:
        endings.wait_until_saved(run, "train")
        assert run.stage("train.py")
        run.strike(case, "train.py")
        gone, left = run.ends()
        said = run.said()
    assert left == [], said
    print(f"{case}: {gone}")
    children = [seconds for words, seconds in gone.items() if not words.endswith(f" {run.process.pid}")]
    assert len(children) >= 1
    assert max(children) < SECONDS, f"{gone}\n{said}"
    assert endings.held(project) == []
    (tracked,) = runs(tracking_uri, project)
    if case.how != signal.SIGKILL or case.who == "runner":
        assert tracked.info.status == "KILLED", said
    assert "Traceback" not in said

    (project / "slow").unlink()
    other = "dvc" if case.runner == "flow" else "flow"
    env = {**env, "PATH": warm.first(env["PATH"])}
    done = subprocess.run(WARM[other], cwd=project, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    (begun,) = re.findall(r"goes on from step (\d+)", done.stdout)
    assert 0 < int(begun) < STEPS
    client = MlflowClient(tracking_uri)
    assert client.get_run(tracked.info.run_id).info.status == "FINISHED"
    logged = [metric.step for metric in client.get_metric_history(tracked.info.run_id, "loss")]
    assert sorted(logged) == list(range(STEPS)), "no gap, and no step twice"


def test_behind_torchrun_a_killed_process_is_told_from_an_error(project: Path, env, tmp_path):
    """It exits with 1 in either case."""
    notes = tmp_path / "notes"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"]
    command += ["--seed", "seed.txt", "--model", "data/model", "--metrics", "data/train.json"]
    with endings.begin(command, project, tmp_path / "log", {**env, NOTES: str(notes), "OMP_NUM_THREADS": "1"}) as run:
        endings.wait_until_saved(run, "train")
        wait_for("both", lambda: notes.read_text().count("began") == 2, seconds=60, every=0.1, log=run.log)
        ranks = {p.environ()["RANK"]: p for p in endings.of(project) if "RANK" in p.environ()}
        ranks["1"].kill()
        status = run.process.wait(60)
    assert status == 1, run.said()
    assert by_system(status, notes.read_text()) == SILENT
    assert f"{ranks['0'].pid} 143" in notes.read_text()
