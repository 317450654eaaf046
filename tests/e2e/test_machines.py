"""docs/machines.md for real, on one machine: a server, two workers that start in another clone, two tasks.

The tests are steps: each needs the ones above it. They take minutes, so they run with `make cluster`. That two workers share
a run, and the cells of a sweep, is told by test_workers.py as well.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from mlflow import MlflowClient

from pipeline.tracking import lock
from tests import warm
from tests.conftest import ROOT, commit, copy_project, wait_for
from tests.e2e.conftest import environment, free_port, started

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("CLUSTER_TASKS" not in os.environ, reason="takes minutes: make cluster"),
]

WORD = "of this very commit"
TASKS = ("other", "topic")
BRANCH = ("teach_task", "finetune", "quantize", "export", "evaluate")
SHARED = 9  # three sources, two tasks, their list, the corpus, the teacher, the sparse model
TWO = """extends: tiny
prepare_teacher: {steps: 12, warmup_steps: 2}
sparsify: {steps: 26}
teach_task: {epochs: 1}
finetune: {epochs: 1}
quantize: {epochs: 1}
tasks:
  other:
    prepare_task: {source: topic, text: text, label: label}
    teach_task: {}
    finetune: {}
    quantize: {}
"""


class Team:
    """A coordinator's folder, the server, and what its workers print."""

    def __init__(self, folder: Path, logs: Path):
        self.home, self.logs = folder / "home", logs
        copy_project(self.home)
        (self.home / "profiles/two.yaml").write_text(TWO)
        stage = self.home / "stages/teach_task.py"
        stage.write_text(
            stage.read_text().replace("    launch(run)", f'    print("\\n{WORD}", flush=True)\n    launch(run)')
        )
        commit(self.home)
        self.port = free_port()
        self.env = environment(self.home, folder / "prefect") | {
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_SERVER_API_PORT": str(self.port),
            "COLUMNS": "150",
        }

    def run(self, *words: str, expect: int = 0) -> str:
        done = subprocess.run(words, cwd=self.home, env=self.env, capture_output=True, text=True, timeout=900)
        said = done.stdout + done.stderr
        assert done.returncode == expect, said[-5000:] + self.workers()[-3000:]
        return said

    def flow(self, *words: str, expect: int = 0) -> str:
        return self.run("python", "-m", *words, expect=expect)

    def workers(self) -> str:
        return "".join(log.read_text() for log in sorted(self.logs.glob("w*.log")))

    def branches(self) -> list[dict]:
        """Prefect's runs of the deployment `branch`."""
        query = {"deployments": {"name": {"any_": ["branch"]}}}
        answer = httpx.post(f"{self.env['PREFECT_API_URL']}/flow_runs/filter", json=query)
        return answer.raise_for_status().json()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    team = Team(folder, tmp_path_factory.mktemp("logs"))
    with ExitStack() as stack:
        server = team.logs / "server.log"
        stack.enter_context(started("prefect server start", cwd=team.home, env=team.env, log=server))

        def up() -> bool:
            try:
                return httpx.get(f"{team.env['PREFECT_API_URL']}/health").status_code == 200
            except httpx.HTTPError:
                return False

        wait_for("Prefect's server", up, seconds=180, log=server)
        team.run("prefect", "work-pool", "create", "pruneonce", "--type", "process")
        team.run("prefect", "--no-prompt", "deploy", "--name", "branch")
        for name in ("w1", "w2"):
            own = {"XDG_CACHE_HOME": str(folder / name), "DVC_GLOBAL_CONFIG_DIR": str(folder / name / "dvc")}
            # In another clone, whose code comes first on the path of this interpreter: it must not be taken.
            env = {**team.env, **own, "PYTHONPATH": os.pathsep.join([str(warm.programs()), str(ROOT)])}
            command = f"prefect worker start --pool pruneonce --limit 1 --name {name}"
            stack.enter_context(started(command, cwd=ROOT, env=env, log=team.logs / f"{name}.log"))
        yield team


def test_without_a_remote_nothing_is_computed(team: Team):
    said = team.flow("flows.compress", "--profile", "two", "--workers", expect=1)
    assert "PipelineError: expected a DVC remote" in said
    assert "dvc remote add --local --default storage" in said
    assert not (team.home / "dvc.lock").exists()
    team.run("dvc", "remote", "add", "--local", "--default", "storage", str(team.home.parent / "store"))


def test_every_branch_is_computed_by_a_worker_from_the_code_of_the_commit(team: Team):
    said = team.flow("flows.compress", "--profile", "two", "--workers")
    ran = dict(re.findall(r"\d+/\d+ (\S+): ran on (w\d) \(", said))
    assert sorted(ran) == sorted(f"{stage}@{task}" for stage in BRANCH for task in TASKS)
    for task in TASKS:
        assert len({ran[f"{stage}@{task}"] for stage in BRANCH}) == 1
    assert f"{SHARED + 11} of {SHARED + 11} stages ran" in said
    assert team.workers().count(WORD) == len(TASKS)
    assert {(run["name"], run["state_name"]) for run in team.branches()} == {(task, "Completed") for task in TASKS}


def test_the_folder_is_as_if_it_had_computed_all_of_it(team: Team):
    assert "Data and pipelines are up to date" in team.run("dvc", "status", "dvc.yaml")
    rows = json.loads((team.home / "data/report/report.json").read_text())
    assert {row["task"] for row in rows} == set(TASKS)
    said = team.flow("flows.compress", "--workers")
    assert said.count(": unchanged (") == SHARED + 11
    assert len(team.branches()) == len(TASKS)


def test_mlflow_has_the_runs_of_all_machines_below_one(team: Team):
    client = MlflowClient(f"sqlite:///{team.home}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("pruneonce").experiment_id], max_results=100)
    (parent,) = [run for run in runs if "pruneonce.flow" in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {run.data.tags["pruneonce.stage"] for run in children} == set(lock.locked(team.home))
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_cell_that_cannot_be_stops_the_sweep_before_it_starts(team: Team):
    said = team.flow("flows.sweep", "--grid", "sparsify.sparsity=0.5,1.5", expect=1)
    assert "ConfigError" in said
    assert "sparsify.sparsity" in said
