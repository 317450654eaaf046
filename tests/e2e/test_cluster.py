"""A team's machines, for real on this one: servers on PostgreSQL, S3, workers in clones, workers that are killed.

The tests are one story, in this order. They take minutes, so they run with `make cluster`. That two workers share a run is
told by test_workers.py too; that a killed stage goes on from its last step, by tests/integration/test_killed_stage.py.
"""

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from mlflow import MlflowClient

from flows.units import KERNELS
from pipeline.tracking import lock
from tests.conftest import ROOT, wait_for
from tests.e2e.cluster import PASSWORD, Cluster, Worker, cluster
from tests.e2e.conftest import started

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("CLUSTER_TASKS" not in os.environ, reason="takes minutes: make cluster"),
]

PAGE = ROOT / "docs/workers.md"
TASKS = int(os.environ.get("CLUSTER_TASKS", "1"))
WORKERS = int(os.environ.get("CLUSTER_WORKERS", "2"))
STEPS = 150  # of sparsify: long enough to be killed in the middle
HEARTBEAT, SILENCE = 30, 40  # seconds: Prefect sends none more often; automations.yaml waits for three
# Depends on the clock: latency is measured, and the report shows it.
TIMED = ("data/latency", "data/report")


@dataclass
class Team:
    """The servers, and what all machines of the team see: one folder."""

    servers: Cluster
    shared: Path
    seen: dict[str, Any] = field(default_factory=dict)

    def env(self) -> dict[str, str]:
        """What section `A fresh clone for every run` has a person set on each machine."""
        return {
            "DVC_GLOBAL_CONFIG_DIR": str(self.shared / "dvc"),
            "PRUNEONCE_SCRATCH": str(self.shared / "scratch"),
            "PRUNEONCE_REPOSITORY": str(self.servers.origin),
            "XDG_CACHE_HOME": str(self.shared / "home"),
        }

    def states(self) -> list[int]:
        """The steps of student pruning that were saved."""
        found = (re.search(r"-(\d{8})\.safetensors$", path.name) for path in self.shared.glob("scratch/sparsify-*/*"))
        return sorted(int(match[1]) for match in found if match)

    def run(self, state: str, *, seconds: float, log: Path) -> dict[str, Any]:
        """The run of the deployment `fresh`, as soon as it is in the state."""

        def ask() -> dict[str, Any] | None:
            run = self.servers.runs("fresh")[0]
            return run if run["state_name"] == state else None

        return wait_for(f"a run that is {state}", ask, seconds=seconds, log=log)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with cluster(tmp_path_factory.mktemp("team")) as servers:
        servers.add_profile(TASKS, steps=STEPS, checkpoint_seconds=0)
        yield Team(servers, tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def clones(team: Team) -> list[Path]:
    return [team.servers.clone(f"machine{n}") for n in range(1, WORKERS + 1)]


def test_a_run_whose_worker_dies_is_shown_as_crashed(team: Team, clones: list[Path]) -> None:
    servers, (here, *_) = team.servers, clones
    servers.run(["dvc", "cache", "dir", "--global", str(team.shared / "cache")], cwd=here, **team.env())
    servers.run(["prefect", "deploy", "--name", "fresh"], cwd=here)
    automations = here / "automations.yaml"
    assert automations.read_text().count("within: 90") == 1
    automations.write_text(automations.read_text().replace("within: 90", f"within: {SILENCE}"))
    said = servers.run(["prefect", "automation", "create", "--from-file", "automations.yaml"], cwd=here)
    assert "no sign of life" in said
    assert "never began" in said

    worker = servers.worker(here, **team.env())
    start = ["prefect", "deployment", "run", "compress/fresh", "--param", 'profile="cluster"']
    servers.run(start, cwd=here)
    wait_for("student pruning", lambda: team.states()[-1:] > [20], seconds=900, every=0.05, log=worker.log)
    worker.kill()
    killed = time.time()
    assert team.states()[-1] < STEPS, "killed too late"
    assert team.run("Running", seconds=1, log=worker.log)
    run = team.run("Crashed", seconds=SILENCE + 30, log=worker.log)
    print(f"shown as crashed {time.time() - killed:.0f} s after the worker's death")
    assert "prefect flow-run retry" in run["state"]["message"]
    team.seen |= {"run": run["id"], "saved": team.states()[-1]}


def test_another_worker_goes_on_from_the_last_step(team: Team, clones: list[Path]) -> None:
    servers, (*_, there) = team.servers, clones
    worker = servers.worker(there, **team.env())
    servers.run(["prefect", "flow-run", "retry", team.seen["run"]], cwd=there)
    assert team.run("Completed", seconds=1500, log=worker.log)["id"] == team.seen["run"]
    stop(worker)
    assert "sparsify: ran" in worker.said()
    assert "fetch_local@corpus: restored from cache" in worker.said()

    client = MlflowClient(servers.mlflow)
    runs = client.search_runs(
        [client.get_experiment_by_name("pruneonce").experiment_id], "tags.pruneonce.stage = 'sparsify'"
    )
    assert [run.info.status for run in runs] == ["FINISHED"], "one run for the execution"
    points = client.get_metric_history(runs[0].info.run_id, "loss")
    assert sorted(point.step for point in points) == list(range(STEPS)), "each step once"
    begun = re.search(rf"sparsify: +\d+%\|[^|]*\| *(\d+)/{STEPS} ", worker.said())
    assert begun
    assert int(begun[1]) >= team.seen["saved"], "no step that was saved is computed again"
    assert not list((team.shared / "scratch").glob("sparsify-*/*.safetensors")), "done is done"


def test_the_same_commit_with_the_same_cache_computes_nothing(team: Team) -> None:
    servers = team.servers
    folder = servers.clone("result")
    said = servers.run(["python", "-m", "flows.compress", "--profile", "cluster"], cwd=folder, **team.env())
    outcomes = re.findall(r"\d+/\d+ \S+: (ran|restored from cache|unchanged) \(", said)
    assert len(outcomes) == 8 + 6 * TASKS
    assert set(outcomes) <= {"restored from cache", "unchanged"}, said
    assert (folder / "data/report/report.md").exists()
    team.seen["outs"] = outs(folder)


def test_tasks_on_workers_make_the_same_bytes_though_one_is_killed(team: Team, clones: list[Path]) -> None:
    """No machine shares a cache here: all goes through S3 and MLflow."""
    servers = team.servers
    coordinator = servers.clone("coordinator")
    if (built := ROOT / KERNELS).exists():  # by `make install`; a worker of `fresh` builds them by itself
        shutil.copy(built, coordinator / KERNELS)
    servers.run(["prefect", "deploy", "--name", "branch"], cwd=coordinator)
    workers = [servers.worker(clone, **alone(team, clone)) for clone in clones]
    log = servers.folder / "coordinator.log"
    command = f"{sys.executable} -m flows.compress --profile cluster --workers"
    with started(command, cwd=coordinator, env=servers.env(coordinator), log=log) as run:
        victim = wait_for(
            "a worker in the middle of a task", lambda: in_the_middle(workers), seconds=1500, every=0.1, log=log
        )
        victim.kill()
        wait_for("the run's end", lambda: run.poll() is not None, seconds=1500, log=log)
    said = log.read_text()
    assert run.returncode == 0, said[-5000:] + servers.said()
    found = outs(coordinator)
    assert len(found) == len(team.seen["outs"])
    assert {path: md5 for path, md5 in found.items() if md5 != team.seen["outs"][path]} == {}
    where = re.findall(r"\d+/\d+ \S+: ran on (\S+) \(", said)
    assert len(where) == 5 * TASKS
    assert set(where) == {clone.name for clone in clones}
    assert "its worker died" in said
    states = [each["state_name"] for each in servers.runs("branch")]
    assert sorted(states) == ["Completed"] * TASKS + ["Crashed"]
    assert "up to date" in servers.run(["dvc", "status"], cwd=coordinator), "nothing is left to compute"


def alone(team: Team, clone: Path) -> dict[str, str]:
    """A machine that shares no folder with another one: DVC's settings, cache and checkpoints are its own."""
    home = team.servers.folder / f"{clone.name}-home"
    return {"XDG_CACHE_HOME": str(home), "DVC_GLOBAL_CONFIG_DIR": str(home / "dvc")}


def in_the_middle(workers: list[Worker]) -> Worker | None:
    """A worker that has handed back a stage of its task, and computes the next one."""
    return next((w for w in workers if "teach_task" in w.said() and " ran (" in w.said() and " 5/5 " not in w.said()), None)


def outs(folder: Path) -> dict[str, str]:
    """path -> md5, of all that does not depend on the clock."""
    found = {path: md5 for stage in lock.current(folder).values() for path, md5 in stage.outs.items()}
    return {path: md5 for path, md5 in found.items() if not path.startswith(TIMED)}


def stop(worker: Worker) -> None:
    """Ctrl-C in the worker's terminal."""
    worker.process.send_signal(signal.SIGINT)
    worker.process.wait(30)


def test_no_password_is_shown(team: Team) -> None:
    servers = team.servers
    logs = [*servers.folder.glob("machine*.log")]
    assert len(logs) >= 2
    assert all(PASSWORD not in log.read_text() for log in logs)
    query = {"limit": 200}
    lines = httpx.post(f"{servers.prefect}/logs/filter", json=query, timeout=60).raise_for_status().json()
    assert len(lines) > 20
    assert all(PASSWORD not in line["message"] for line in lines)
