"""docs/workers.md, followed to the letter: a server, two workers, a schedule, a run that both share, a cancelled one.

The tests are the page's steps: each needs the ones above it.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT, copy_project, wait_for
from tests.e2e.conftest import bash_blocks, environment, free_port, started

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs/workers.md"
STAY = ("prefect server start", "prefect worker start", "mlflow server")
STAGES = 20  # of the deployment `spread`: 8 for both tasks, 6 for each
WORKERS = ("one", "two")


class Reader:
    """Somebody who types what the page says; only the two ports are others."""

    def __init__(self, project: Path, logs: Path, stack: ExitStack):
        self.project, self.logs, self.stack = project, logs, stack
        self.blocks = bash_blocks(PAGE)
        self.done: list[str] = []
        self.ports = {"4200": str(free_port()), "5000": str(free_port())}
        own = {
            "PREFECT_SERVER_API_PORT": self.ports["4200"],
            "XDG_CACHE_HOME": str(logs / "home"),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # six processes that wait for jobs, of which there are none
        }
        self.env = environment(project, logs / "prefect") | own

    def follow(self, heading: str) -> str:
        """Execute the blocks below the heading. Returns what those that ended have printed."""
        said = []
        for block in self.blocks[heading]:
            for standard, ours in self.ports.items():
                block = block.replace(standard, ours)
            name = next((s for s in STAY if block.startswith(s)), None)
            if name:
                log = self.log(block.strip())
                self.stack.enter_context(started(block.strip(), cwd=self.project, env=self.env, log=log))
                self.wait_until_up(name, log)
            else:
                said.append(self.bash(block))
        self.done.append(heading)
        return "\n".join(said)

    def bash(self, block: str, *, seconds: float = 200) -> str:
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=self.project,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert ended.returncode == 0, f"{block}\n{ended.stdout}\n{ended.stderr}\n{self.ends()}"
        return ended.stdout

    def log(self, command: str) -> Path:
        return self.logs / f"{re.sub(r'[^a-z0-9]+', '-', command)[:80]}.log"

    def said(self) -> dict[str, str]:
        """What each worker has printed."""
        logs = {name: next(self.logs.glob(f"prefect-worker-start-*-{name}.log"), None) for name in WORKERS}
        return {name: log.read_text() if log else "" for name, log in logs.items()}

    def ends(self) -> str:
        return "\n".join(f"== {name}\n{said[-3000:]}" for name, said in self.said().items())

    def workers(self) -> str:
        return "\n".join(self.said().values())

    def wait_until_up(self, name: str, log: Path) -> None:
        url = {"prefect server start": f"{self.prefect}/health", "mlflow server": f"{self.mlflow}/health"}.get(name)

        def up() -> bool:
            try:
                return httpx.get(url).status_code == 200
            except httpx.HTTPError:
                return False

        if url:
            wait_for(f"an answer from {name}", up, seconds=180, log=log)

    @property
    def prefect(self) -> str:
        return f"http://127.0.0.1:{self.ports['4200']}/api"

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.ports['5000']}"

    def runs(self, *deployments: str) -> list[dict[str, Any]]:
        """Prefect's runs of the deployments, the newest first."""
        query = {"deployments": {"name": {"any_": deployments}}, "sort": "EXPECTED_START_TIME_DESC"}
        return httpx.post(f"{self.prefect}/flow_runs/filter", json=query, timeout=60).raise_for_status().json()

    def stages(self, runs: list[dict[str, Any]]) -> list[str]:
        """The names of the runs' tasks that are stages. The server writes them down with some delay."""

        def ask() -> list[str]:
            own = {"task_runs": {"subflow_runs": {"exists_": False}}}  # not those that stand for a run of `branch`
            query = own | {"flow_runs": {"id": {"any_": [run["id"] for run in runs]}}}
            found = httpx.post(f"{self.prefect}/task_runs/filter", json=query, timeout=60).raise_for_status().json()
            stages = [task for task in found if task["task_key"].startswith("repro")]  # others hand out and deliver
            return [t["name"] for t in stages if t["state_type"] == "COMPLETED"] if len(stages) >= STAGES else []

        return wait_for(f"{STAGES} completed task runs", ask, seconds=30)

    def tracked(self) -> list[dict[str, Any]]:
        """MLflow's runs, the newest first, as {name, id, status, tags}."""
        found = httpx.get(
            f"{self.mlflow}/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": "pruneonce"}
        ).raise_for_status()
        query = {"experiment_ids": [found.json()["experiment"]["experiment_id"]], "max_results": 1000}
        runs = (
            httpx.post(f"{self.mlflow}/api/2.0/mlflow/runs/search", json=query, timeout=60).raise_for_status().json()["runs"]
        )
        return [
            {
                "name": run["info"]["run_name"],
                "id": run["info"]["run_id"],
                "status": run["info"]["status"],
                "tags": {tag["key"]: tag["value"] for tag in run["data"]["tags"]},
            }
            for run in runs
        ]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A reader who has two workers waiting for runs: sections 1 to 4."""
    project = copy_project(tmp_path_factory.mktemp("project"))
    with ExitStack() as stack:
        reader = Reader(project, tmp_path_factory.mktemp("logs"), stack)
        for heading in list(reader.blocks)[:4]:
            reader.follow(heading)
        # Its hour could come while this runs.
        nightly = httpx.get(f"{reader.prefect}/deployments/name/compress/nightly").raise_for_status().json()["id"]
        httpx.patch(f"{reader.prefect}/deployments/{nightly}", json={"paused": True}).raise_for_status()
        yield reader


def test_the_schedule_of_the_nightly_run_is_deployed(reader: Reader) -> None:
    found = httpx.get(f"{reader.prefect}/deployments/name/compress/nightly").raise_for_status().json()
    schedules = [(s["schedule"]["cron"], s["schedule"]["timezone"]) for s in found["schedules"]]
    assert schedules == [("0 2 * * *", "UTC")]
    assert found["parameters"] == {"profile": "default", "overrides": []}


def test_a_schedule_fires_and_two_workers_share_the_run(reader: Reader) -> None:
    create, take_away = reader.blocks["5. A schedule"]
    reader.bash(create)
    run = wait_for("a scheduled run", lambda: started_run(reader, "spread"), seconds=180)
    assert run["auto_scheduled"]
    reader.bash(take_away)
    run = wait_for("its end", lambda: ended_run(reader, "spread"), seconds=1500)
    assert run["state_name"] == "Completed", reader.ends()
    stages = sorted(YAML(typ="safe").load(reader.project / "dvc.lock")["stages"])
    assert len(stages) == STAGES
    branches = reader.runs("branch")
    assert [branch["state_name"] for branch in branches] == ["Completed"] * 2
    assert sorted(reader.stages([run, *branches])) == stages
    said = reader.said()
    assert all(": ran (" in said[name] for name in WORKERS), "both computed stages"
    assert len(re.findall(r": ran on (?:one|two) \(", reader.workers())) == 10, "five stages of each task"
    report = (reader.project / "data/report/report.md").read_text()
    assert "topic" in report
    assert "short" in report
    reader.done.append("5. A schedule")


def test_mlflow_has_one_parent_run_and_a_child_for_every_stage(reader: Reader) -> None:
    traced = reader.follow("6. See it")
    lock = YAML(typ="safe").load(reader.project / "dvc.lock")["stages"]
    assert all(
        f"{stage} " in traced or f"{stage}\n" in traced
        for stage in lock
        if "report" not in stage and "evaluate" not in stage and "@short" not in stage
    )
    for stage in ("fetch_local@topic", "fetch_local@corpus"):  # back to the files of this machine, and their checksums
        (source,) = [dep for dep in lock[stage]["deps"] if dep["path"].startswith("tests/")]
        assert source["path"] in traced
        assert source["md5"] in traced
    (parent,) = [run for run in reader.tracked() if "pruneonce.flow" in run["tags"]]
    children = [run for run in reader.tracked() if run["tags"].get("mlflow.parentRunId") == parent["id"]]
    assert len({run["tags"]["pruneonce.stage"] for run in children}) == len(children) == STAGES
    assert {run["status"] for run in [parent, *children]} == {"FINISHED"}
    assert all("pruneonce.outs" in run["tags"] for run in children)


def test_a_second_run_finds_nothing_to_do(reader: Reader) -> None:
    before, said = len(reader.tracked()), reader.workers().count(": unchanged (")
    reader.bash(reader.blocks["7. Run now"][0])
    run = reader.runs("spread")[0]
    assert run["state_name"] == "Completed"
    assert reader.workers().count(": unchanged (") - said == STAGES
    assert len(reader.tracked()) == before
    assert len(reader.runs("branch")) == 2


def test_each_cell_of_a_sweep_is_a_run_of_a_worker_and_the_folder_stays_as_it_is(reader: Reader) -> None:
    """docs/machines.md: what all cells share is there already, and each has one stage of its own."""
    before = [(reader.project / name).read_bytes() for name in ("params.yaml", "dvc.lock")]
    sweep = "python -m flows.sweep --grid report.title=one,two --workers --name titles"
    assert "report.title" in reader.bash(sweep, seconds=900)
    folder = reader.project / ".pruneonce/sweeps/titles"
    table = (folder / "table.csv").read_text().splitlines()
    rows = json.loads((reader.project / "data/report/report.json").read_text())
    assert len(table) == 1 + 2 * len(rows) >= 1 + 2 * 2 * 3, "a row for each cell, task and variant"
    assert (folder / "plot.svg").read_text().startswith("<svg")
    assert [(reader.project / name).read_bytes() for name in ("params.yaml", "dvc.lock")] == before
    cells = {(run["name"], run["state_name"]) for run in reader.runs("branch") if run["name"].startswith("title=")}
    assert cells == {("title=one", "Completed"), ("title=two", "Completed")}
    runs = len(reader.runs("branch"))
    again = reader.bash(f"{sweep} 2>&1", seconds=300)  # what it logs, too
    assert again.count("finished by an earlier sweep") == 2
    assert len(reader.runs("branch")) == runs
    assert (folder / "table.csv").read_text().splitlines() == table


def test_a_cancelled_run_leaves_no_process_behind(reader: Reader, cold: None) -> None:
    reader.bash(reader.blocks["7. Run now"][1])
    reader.done.append("7. Run now")
    stage = wait_for("student pruning", lambda: process_of(reader, "stages.sparsify"), seconds=90)
    engine = wait_for("the run's process", lambda: process_of(reader, "prefect.engine"), seconds=10)
    wait_for("its first steps", lambda: "/20000 [" in reader.workers(), seconds=60)
    family = [engine, *engine.children(recursive=True)]
    assert stage in family

    reader.follow("8. Cancel")

    run = wait_for("the run's end", lambda: ended_run(reader, "tiny"), seconds=60)
    assert run["state_name"] == "Cancelled"
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert process_of(reader, "stages.") is None
    flow, child = (next(r for r in reader.tracked() if r["name"] == name) for name in ("compress", "sparsify"))
    assert child["tags"]["mlflow.parentRunId"] == flow["id"]
    # KILLED, unless the machine was so busy that Prefect lost patience and ended them hard.
    assert child["status"] in ("KILLED", "RUNNING")
    assert flow["status"] in ("KILLED", "RUNNING")


def started_run(reader: Reader, deployment: str) -> dict[str, Any] | None:
    """The newest run of the deployment, if a worker has begun it."""
    return next((run for run in reader.runs(deployment) if run["start_time"]), None)


def ended_run(reader: Reader, deployment: str) -> dict[str, Any] | None:
    """The newest run that was begun, if it is over. A machine that stood still makes it Crashed for a while."""
    run = started_run(reader, deployment)
    return run if run and run["state_name"] in ("Completed", "Failed", "Cancelled") else None


def process_of(reader: Reader, word: str) -> psutil.Process | None:
    """A process in the reader's folder with the word in its command line."""
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == reader.project and any(word in part for part in process.cmdline()):
                return process
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return None


def test_every_command_of_the_page_was_executed(reader: Reader) -> None:
    with_commands = [heading for heading, blocks in reader.blocks.items() if blocks]
    assert len(with_commands) == 8
    assert reader.done == with_commands
