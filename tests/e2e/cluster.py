"""The servers of a team on loopback, and its workers: PostgreSQL, S3, Prefect, MLflow; each is ended with its `with`.

moto is the S3: the only server of its kind that is a package, and it needs little that MLflow has not brought already.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
import psycopg2
import pytest

from tests.conftest import commit, copy_project, wait_for
from tests.e2e.conftest import environment, free_port, started

POOL = "pruneonce"
BUCKET = "pruneonce"
NO_FILE = "/nowhere/aws"  # so the settings of the person at this machine are not read; DVC refuses /dev/null
USER, PASSWORD = "team", "kept-to-oneself"
START_SECONDS = 180
# Nothing has to outlive the test: five times faster than with the defaults.
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "unix_socket_directories=")


def postgres_programs() -> Path | None:
    """The folder of initdb and postgres. Debian keeps it off the PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if {"initdb", "postgres"} <= set(os.listdir(folder))), None)


@dataclass(frozen=True)
class Postgres:
    """A server with one user, who has a password and may do everything."""

    port: int

    def url(self, database: str, driver: str = "postgresql") -> str:
        return f"{driver}://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"


@contextmanager
def postgres(*databases: str) -> Iterator[Postgres]:
    """A PostgreSQL server with these empty databases, in a folder of its own; the test is skipped where there is none."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("needs PostgreSQL's initdb and postgres: apt-get install postgresql")
    port = free_port()
    # Not in pytest's folder: that is closed to other users, and PostgreSQL refuses to be root.
    with tempfile.TemporaryDirectory(prefix="postgres-") as name, ExitStack() as stack:
        folder, as_user = Path(name), _unprivileged()
        (folder / "password").write_text(PASSWORD)
        if as_user:
            for path in (folder, folder / "password"):
                os.chown(path, as_user["user"], as_user["group"])
        create = [str(programs / "initdb"), "-D", str(folder / "data"), "-U", USER, f"--pwfile={folder / 'password'}"]
        create += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync"]
        subprocess.run(create, check=True, capture_output=True, cwd=folder, **as_user)
        options = [word for setting in (*FAST, "listen_addresses=127.0.0.1", f"port={port}") for word in ("-c", setting)]
        log = stack.enter_context((folder / "log").open("wb"))
        command = _dies_with_us([str(programs / "postgres"), "-D", str(folder / "data"), *options])
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True, **as_user)
        stack.callback(_stop, server)
        made = Postgres(port)

        def up() -> bool:
            try:
                psycopg2.connect(made.url("postgres")).close()
            except psycopg2.OperationalError:
                return False
            return True

        wait_for("an answer from PostgreSQL", up, seconds=60, every=0.1, log=folder / "log")
        with contextlib.closing(psycopg2.connect(made.url("postgres"))) as connection:
            connection.autocommit = True  # no database is created inside a transaction
            for database in databases:
                connection.cursor().execute(f'CREATE DATABASE "{database}"')
        yield made


def _unprivileged() -> dict[str, Any]:
    """For subprocess: the user `nobody`, if this is root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGINT)  # PostgreSQL's "fast" shutdown: it does not wait for its clients
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _dies_with_us(command: list[str]) -> list[str]:
    """The command, killed by the kernel if this process is: then no `finally` runs."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", *command] if setpriv else command


@dataclass(frozen=True)
class Server:
    """A server that was started. health: an address of it that answers 200 when it is there."""

    url: str
    health: str
    process: psutil.Process
    log: Path

    def wait(self) -> str:
        """Wait until it answers, and return its address."""

        def up() -> bool:
            lives = self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
            assert lives, self.log.read_text()[-3000:]
            try:
                return httpx.get(self.health).status_code == 200
            except httpx.HTTPError:
                return False

        wait_for(f"an answer from {self.health}", up, seconds=START_SECONDS, every=0.3, log=self.log)
        return self.url


@contextmanager
def server(command: str, url: str, health: str, *, cwd: Path, env: dict[str, str], log: Path) -> Iterator[Server]:
    """A server, begun and not waited for: so several start at once. What it holds is of no use later, so its end is hard."""
    with started(" ".join(_dies_with_us([command])), cwd=cwd, env=env, log=log) as process:
        running = psutil.Process(process.pid)
        try:
            yield Server(url, f"{url}{health}", running, log)
        finally:
            end(running)


def end(process: psutil.Process) -> None:
    """Kill a process and all below it, also those with a process group of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)]
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.suspend()  # else a parent starts another, or tells a server
        for each in {*family, *process.children(recursive=True)}:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(family, timeout=10)


@dataclass(frozen=True)
class S3:
    """Its address, and the variables by which boto3, s3fs and so DVC and MLflow find it."""

    url: str

    @property
    def env(self) -> dict[str, str]:
        keys = {"AWS_ACCESS_KEY_ID": "team", "AWS_SECRET_ACCESS_KEY": PASSWORD, "AWS_DEFAULT_REGION": "us-east-1"}
        return {"AWS_ENDPOINT_URL": self.url, "AWS_CONFIG_FILE": NO_FILE, **keys}

    def keys(self, prefix: str = "") -> list[str]:
        """What the bucket holds."""
        client = boto3.client("s3", endpoint_url=self.url, aws_access_key_id="team", aws_secret_access_key=PASSWORD)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


@contextmanager
def s3(folder: Path) -> Iterator[Server]:
    """An S3 server that keeps all in memory."""
    port = free_port()
    command = f"{sys.executable} -m moto.server -H 127.0.0.1 -p {port}"
    url, env = f"http://127.0.0.1:{port}", environment(folder, folder, cold=True)
    with server(command, url, "/moto-api/", cwd=folder, env=env, log=folder / "s3.log") as begun:
        yield begun


@contextmanager
def prefect_server(folder: Path, database: str) -> Iterator[Server]:
    """Prefect's server on the database (postgresql+asyncpg://...). It is PREFECT_API_URL."""
    port = free_port()
    (folder / "prefect-server").mkdir()
    env = environment(folder, folder / "prefect-server", cold=True) | {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database}
    command, api = f"prefect server start --host 127.0.0.1 --port {port}", f"http://127.0.0.1:{port}/api"
    with server(command, api, "/health", cwd=folder, env=env, log=folder / "prefect-server.log") as begun:
        yield begun


@contextmanager
def mlflow_server(folder: Path, database: str, artifacts: str, env: dict[str, str]) -> Iterator[Server]:
    """MLflow's server on the database (postgresql://...), its artifacts in S3. It is MLFLOW_TRACKING_URI."""
    port = free_port()
    command = f"mlflow server --backend-store-uri {database} --artifacts-destination {artifacts}"
    command += f" --host 127.0.0.1 --port {port} --workers 1"
    # Without the processes that judge answers of language models, which nobody asks for here.
    env = environment(folder, folder, cold=True) | env | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    url, log = f"http://127.0.0.1:{port}", folder / "mlflow-server.log"
    with server(command, url, "/health", cwd=folder, env=env, log=log) as begun:
        yield begun


@dataclass
class Worker:
    """A worker of the pool, in a clone."""

    name: str
    clone: Path
    process: psutil.Process
    log: Path

    def said(self) -> str:
        return self.log.read_text()

    def family(self) -> list[psutil.Process]:
        """The worker, its runs' processes and their stages, also those with a process group of their own."""
        return [self.process, *self.process.children(recursive=True)]

    def kill(self) -> None:
        """What a machine that loses its power does: all of it ends, and nothing is said."""
        end(self.process)


@contextmanager
def worker(clone: Path, name: str, *, env: dict[str, str], log: Path, pool: str = POOL) -> Iterator[Worker]:
    """A worker that takes one run at a time, in the clone."""
    command = f"prefect worker start --pool {pool} --limit 1 --name {name}"
    with started(" ".join(_dies_with_us([command])), cwd=clone, env=env, log=log) as process:
        found = Worker(name, clone, psutil.Process(process.pid), log)
        wait_for(f"worker {name}", lambda: "started!" in found.said(), seconds=60, every=0.3, log=log)
        yield found


@dataclass
class Cluster:
    """All servers, one origin that is cloned, and the workers that were started."""

    folder: Path
    origin: Path
    database: Postgres
    storage: S3
    prefect: str
    mlflow: str
    stack: ExitStack
    workers: list[Worker] = field(default_factory=list)

    def env(self, clone: Path) -> dict[str, str]:
        """What a person's terminal has on a machine of the team. Its Prefect home is its own, as on another machine."""
        return (
            environment(clone, self.folder / f"{clone.name}-prefect", cold=True)
            | {"PREFECT_API_URL": self.prefect, "MLFLOW_TRACKING_URI": self.mlflow, "DVC_NO_ANALYTICS": "1"}
            | self.storage.env
        )

    def add_profile(self, tasks: int, *, steps: int, checkpoint_seconds: float) -> None:
        """Commit the profile `cluster`: the tiny one with so many tasks, and so many steps of student pruning."""
        more = "".join(
            f"  task{n}: {{prepare_task: {{source: topic, text: text, label: label, max_tokens: {24 + 2 * n}}}, "
            "teach_task: {}, finetune: {}, quantize: {}}\n"
            for n in range(1, tasks)
        )
        own = f"machine: {{checkpoint_seconds: {checkpoint_seconds}}}\nsparsify: {{steps: {steps}}}\n"
        text = f"extends: tiny\n{own}" + (f"tasks:\n{more}" if more else "")
        (self.origin / "profiles/cluster.yaml").write_text(text)
        commit(self.origin)

    def clone(self, name: str) -> Path:
        """A clone of the origin, with the team's remote."""
        folder = self.folder / name
        (self.folder / f"{name}-prefect").mkdir()
        self.run(["git", "clone", "-q", str(self.origin), str(folder)], cwd=self.folder)
        for key, value in (("user.name", "test"), ("user.email", "test@example.org")):
            self.run(["git", "config", key, value], cwd=folder)
        self.run(["dvc", "remote", "add", "-q", "--local", "--default", "storage", f"s3://{BUCKET}/dvc"], cwd=folder)
        return folder

    def run(self, command: list[str], *, cwd: Path, expect: int = 0, **env: str) -> str:
        """Execute a command as a person would, and return what it printed."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env=self.env(cwd) | {"COLUMNS": "150"} | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1500,
        )
        said = done.stdout + done.stderr
        assert done.returncode == expect, f"{command}\n{said[-6000:]}\n{self.said()}"
        return said

    def worker(self, clone: Path, **env: str) -> Worker:
        """A worker in the clone; it is named after it."""
        log = self.folder / f"{clone.name}-{len(self.workers)}.log"
        found = self.stack.enter_context(worker(clone, clone.name, env=self.env(clone) | env, log=log))
        self.workers.append(found)
        return found

    def said(self) -> str:
        """The end of every worker's log."""
        return "\n".join(f"== {each.name}\n{each.said()[-2000:]}" for each in self.workers)

    def runs(self, *deployments: str) -> list[dict[str, Any]]:
        """Prefect's runs of the deployments, or of all, the newest first."""
        query: dict[str, Any] = {"sort": "EXPECTED_START_TIME_DESC"}
        if deployments:
            query["deployments"] = {"name": {"any_": list(deployments)}}
        return httpx.post(f"{self.prefect}/flow_runs/filter", json=query, timeout=60).raise_for_status().json()


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Both servers on PostgreSQL, S3, a work pool, and a git repository of the project to clone."""
    with ExitStack() as stack:
        database = stack.enter_context(postgres("prefect", "mlflow"))
        started_s3 = stack.enter_context(s3(folder))
        storage = S3(started_s3.url)
        on_asyncpg, artifacts = database.url("prefect", "postgresql+asyncpg"), f"s3://{BUCKET}/mlflow"
        prefect = stack.enter_context(prefect_server(folder, on_asyncpg))
        mlflow = stack.enter_context(mlflow_server(folder, database.url("mlflow"), artifacts, storage.env))
        (folder / "origin").mkdir()
        origin = copy_project(folder / "origin")
        httpx.put(f"{started_s3.wait()}/{BUCKET}").raise_for_status()
        httpx.post(f"{prefect.wait()}/work_pools/", json={"name": POOL, "type": "process"}, timeout=60).raise_for_status()
        yield Cluster(folder, origin, database, storage, prefect.url, mlflow.wait(), stack)
