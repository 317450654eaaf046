"""docs/workers.md, followed to the letter: a server, a worker, a schedule that fires, a run that is cancelled.

The tests are the page's steps: each needs the ones above it.
"""

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
STAGES = 14  # of profiles/tiny.yaml


class Reader:
    """Somebody who types what the page says; only the two ports are others."""

    def __init__(self, project: Path, logs: Path, stack: ExitStack):
        self.project, self.logs, self.stack = project, logs, stack
        self.blocks = bash_blocks(PAGE)
        self.done: list[str] = []
        self.ports = {"4200": str(free_port()), "5000": str(free_port())}
        self.env = environment(project, logs / "prefect") | {"PREFECT_SERVER_API_PORT": self.ports["4200"]}

    def follow(self, heading: str) -> str:
        """Execute the blocks below the heading. Returns what those that ended have printed."""
        said = []
        for block in self.blocks[heading]:
            for standard, ours in self.ports.items():
                block = block.replace(standard, ours)
            name = next((s for s in STAY if block.startswith(s)), None)
            if name:
                log = self.log(name)
                self.stack.enter_context(started(block.strip(), cwd=self.project, env=self.env, log=log))
                self.wait_until_up(name)
            else:
                said.append(self.bash(block))
        self.done.append(heading)
        return "\n".join(said)

    def bash(self, block: str) -> str:
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=self.project,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert ended.returncode == 0, f"{block}\n{ended.stdout}\n{ended.stderr}\n{self.worker()[-3000:]}"
        return ended.stdout

    def log(self, name: str) -> Path:
        return self.logs / f"{name.replace(' ', '-')}.log"

    def worker(self) -> str:
        log = self.log("prefect worker start")
        return log.read_text() if log.exists() else ""

    def wait_until_up(self, name: str) -> None:
        url = {"prefect server start": f"{self.prefect}/health", "mlflow server": f"{self.mlflow}/health"}.get(name)

        def up() -> bool:
            try:
                return httpx.get(url).status_code == 200
            except httpx.HTTPError:
                return False

        if url:
            wait_for(f"an answer from {name}", up, seconds=180, log=self.log(name))

    @property
    def prefect(self) -> str:
        return f"http://127.0.0.1:{self.ports['4200']}/api"

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.ports['5000']}"

    def runs(self, **query: Any) -> list[dict[str, Any]]:
        """Prefect's runs of the deployment `tiny`, the newest first."""
        tiny = {"deployments": {"name": {"any_": ["tiny"]}}, "sort": "EXPECTED_START_TIME_DESC"}
        return httpx.post(f"{self.prefect}/flow_runs/filter", json=tiny | query).raise_for_status().json()

    def tasks(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        """The task runs of a flow run. The server writes them down with some delay."""

        def ask() -> list[dict[str, Any]]:
            query = {"flow_runs": {"id": {"any_": [run["id"]]}}}
            found = httpx.post(f"{self.prefect}/task_runs/filter", json=query).raise_for_status().json()
            return found if len(found) >= STAGES and all(t["state_type"] == "COMPLETED" for t in found) else []

        return wait_for(f"{STAGES} completed task runs", ask, seconds=30)

    def tracked(self) -> list[dict[str, Any]]:
        """MLflow's runs, the newest first, as {name, id, status, tags}."""
        found = httpx.get(
            f"{self.mlflow}/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": "pruneonce"}
        ).raise_for_status()
        query = {"experiment_ids": [found.json()["experiment"]["experiment_id"]], "max_results": 1000}
        runs = httpx.post(f"{self.mlflow}/api/2.0/mlflow/runs/search", json=query).raise_for_status().json()["runs"]
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
    """A reader who has a worker waiting for runs: sections 1 to 4."""
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


def test_a_schedule_fires_and_every_stage_is_a_completed_task(reader: Reader) -> None:
    create, take_away = reader.blocks["5. A schedule"]
    worker = reader.log("prefect worker start")
    reader.bash(create)
    run = wait_for("a scheduled run", lambda: started_run(reader), seconds=180, log=worker)
    assert run["auto_scheduled"]
    reader.bash(take_away)
    run = wait_for("its end", lambda: ended_run(reader), seconds=500, log=worker)
    assert run["state_name"] == "Completed", reader.worker()[-3000:]
    stages = sorted(YAML(typ="safe").load(reader.project / "dvc.lock")["stages"])
    assert len(stages) == STAGES
    assert sorted(task["name"] for task in reader.tasks(run)) == stages
    assert "84." in (reader.project / "data/report/report.md").read_text()
    reader.done.append("5. A schedule")


def test_mlflow_has_one_parent_run_and_a_child_for_every_stage(reader: Reader) -> None:
    traced = reader.follow("6. See it")
    lock = YAML(typ="safe").load(reader.project / "dvc.lock")["stages"]
    assert all(
        f"{stage} " in traced or f"{stage}\n" in traced for stage in lock if stage not in ("report", "evaluate@topic")
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
    before, said = len(reader.tracked()), len(reader.worker())
    reader.bash(reader.blocks["7. Run now"][0])
    run = reader.runs(limit=1)[0]
    assert run["state_name"] == "Completed"
    assert len(reader.tasks(run)) == STAGES
    assert reader.worker()[said:].count(": unchanged (") == STAGES
    assert len(reader.tracked()) == before


def test_a_cancelled_run_leaves_no_process_behind(reader: Reader) -> None:
    reader.bash(reader.blocks["7. Run now"][1])
    reader.done.append("7. Run now")
    worker = reader.log("prefect worker start")
    stage = wait_for("student pruning", lambda: process_of(reader, "stages.sparsify"), seconds=90, log=worker)
    engine = wait_for("the run's process", lambda: process_of(reader, "prefect.engine"), seconds=10)
    wait_for("its first steps", lambda: "/20000 [" in reader.worker(), seconds=60, log=worker)
    family = [engine, *engine.children(recursive=True)]
    assert stage in family

    reader.follow("8. Cancel")

    run = wait_for("the run's end", lambda: ended_run(reader), seconds=60)
    assert run["state_name"] == "Cancelled"
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert process_of(reader, "stages.") is None
    flow, child = (next(r for r in reader.tracked() if r["name"] == name) for name in ("compress", "sparsify"))
    assert child["tags"]["mlflow.parentRunId"] == flow["id"]
    # KILLED, unless the machine was so busy that Prefect lost patience and ended them hard.
    assert child["status"] in ("KILLED", "RUNNING")
    assert flow["status"] in ("KILLED", "RUNNING")


def started_run(reader: Reader) -> dict[str, Any] | None:
    """The newest run, if a worker has begun it."""
    return next((run for run in reader.runs() if run["start_time"]), None)


def ended_run(reader: Reader) -> dict[str, Any] | None:
    """The newest run that was begun, if it is over."""
    run = started_run(reader)
    return run if run and run["end_time"] else None


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
