"""MLflow: one run per executed stage, under one parent per flow run.

The server is MLFLOW_TRACKING_URI, by default a sqlite file beside params.yaml. It is asked before work starts; if it is
lost later, training goes on and says so, and what was logged meanwhile is sent when it answers again. A stage that was
killed goes on with its run. No password is shown, and none of an http address is given to MLflow as a part of it.
"""

import contextlib
import getpass
import logging
import os
import posixpath
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psutil

# An unreachable server must be known in seconds: MLflow's own defaults retry for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # it tells every step of its database's migration

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as migrations
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from pipeline import database, lineage
from pipeline.lineage import Stage
from pruneonce.errors import TrackerUnreachable, plain

logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints a traceback of every error that it raises

EXPERIMENT = "pruneonce"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow's pages are those for chat agents
PARENT = "PRUNEONCE_PARENT_RUN"  # set by the flow, read by the stages it starts; never changes an out
RUN = "run"  # in a stage's scratch folder: the id of its run, for the process that goes on with it
HOST, PROCESS = "pruneonce.host", "pruneonce.process"  # tags: by whom a run is written
CLOCK_SECONDS = 10.0  # what a process's start may differ by, read twice: the system's clock is set now and then
FLUSH_SECONDS = 5.0
PAUSE = 20  # after a try, so many times what it took: a server that times out takes a twentieth of the time, not all of it
MOST = 100_000  # entries that wait for a server; then the oldest go
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")  # e.g. the run was deleted
BATCH = 90  # entries a request: the server's limit is 100 params, 1000 metrics


def uri() -> str:
    """Where runs are kept. May hold a password: show `shown()`."""
    given = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    file = _file(given)
    if file is None or file.is_absolute() or lineage.home() == Path.cwd():
        return given
    return make_url(given).set(database=str(lineage.home() / file)).render_as_string()


def shown() -> str:
    """Where runs are kept, without a password."""
    given = uri()
    return plain(given if "://" in given else given.rpartition("@")[2])


def said(error: object) -> str:
    """What an error says, one line without a password, whatever of the address it repeats, and without its SQL."""
    text = str(error).partition("[SQL:")[0].replace(uri(), shown())
    for part in sorted(_secrets(uri()), key=len, reverse=True):
        text = text.replace(part, "***")
    return plain(text)[:300]


def _secrets(address: str) -> set[str]:
    """The password of an address, or the token that stands alone before its host, in all forms that an error may have it."""
    scheme, _, rest = address.rpartition("://") if "://" in address else ("x", "", address)
    login, at, _ = rest.rpartition("@")
    if not at or plain(f"{scheme}://{login}@") != f"{scheme}://":  # an `@` in a path
        return set()
    user, _, password = login.partition(":")
    secret = password or user
    return {part for part in (secret, unquote(secret), *re.split(r"[/:?#@]", secret)) if len(part) > 2}


def _file(address: str) -> Path | None:
    """The sqlite file of such an address; None for a server, for memory, and for sqlite's own `file:` addresses."""
    if not address.startswith("sqlite"):
        return None
    try:
        path = make_url(address).database
    except ArgumentError:  # MLflow says what is wrong with it
        return None
    return Path(path) if path and path != ":memory:" and not path.startswith("file:") else None


def connect() -> tuple[MlflowClient, str]:
    """A client and the id of our experiment. Raises TrackerUnreachable."""
    try:
        if file := _file(uri()):
            database.ensure(file, _migrate)
            database.check(file, migrations._get_latest_schema_revision(), _older)
        client = MlflowClient(tracking_uri=_address())
        return client, _experiment(client)
    except TrackerUnreachable:
        raise
    except Exception as error:
        raise _unreachable(error) from None


@contextmanager
def store(also: str = "") -> Iterator[tuple[MlflowClient, str]]:
    """The same, for some requests: what fails is one TrackerUnreachable. also: what else it says."""
    try:
        yield connect()
    except TrackerUnreachable as error:
        raise TrackerUnreachable(f"{error}{also}") from None
    except Exception as error:
        raise TrackerUnreachable(f"{_unreachable(error)}{also}") from None


def _unreachable(error: Exception) -> TrackerUnreachable:
    what = database.advice(str(error), _file(uri()) or Path("it"))
    if not what and os.environ.get("MLFLOW_TRACKING_URI"):
        what = "Start it, or unset MLFLOW_TRACKING_URI to use a local file."
    return TrackerUnreachable(f"expected an MLflow tracking store at {shown()}, found: {said(error)}. {what}".rstrip())


def _address() -> str:
    """The address as MLflow is given it: it prints it, so of an http one user and password go where it looks for them."""
    address = urlsplit(uri())
    if address.scheme not in ("http", "https") or "@" not in address.netloc:
        return uri()
    user, _, password = address.netloc.rpartition("@")[0].partition(":")
    for name, part in (("USERNAME", user), ("PASSWORD", password)):
        if part:  # what is not in the address may be set already
            os.environ[f"MLFLOW_TRACKING_{name}"] = unquote(part)
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()


def _migrate(file: Path) -> None:
    """Write an empty database of MLflow's, with all that it holds in one file."""
    address = f"sqlite:///{file}"
    try:
        SqlAlchemyStore(address, _artifacts())
    finally:
        if engine := SqlAlchemyStore._engine_map.pop(address, None):  # kept for later, when this is another file
            engine.dispose()


def _older(version: str) -> bool:
    """Whether this MLflow knows the schema: then it is an older one."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(migrations._get_alembic_config(""))
    return version in {script.revision for script in scripts.walk_revisions()}


def _artifacts() -> str:
    """Where artifacts lie whose records are in a sqlite file: MLflow's own default, in the project itself."""
    return str(lineage.home() / "mlruns")


def _experiment(client: MlflowClient) -> str:
    """The id of our experiment, made if there is none yet. Raises TrackerUnreachable if it was deleted."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        place = _artifacts() + f"/{EXPERIMENT}" if uri().startswith("sqlite") else None
        try:
            return client.create_experiment(EXPERIMENT, artifact_location=place, tags=KIND)
        except MlflowException:
            found = client.get_experiment_by_name(EXPERIMENT)  # another worker made it in between
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise TrackerUnreachable(
            f"expected the experiment {EXPERIMENT} in MLflow at {shown()}, found that it was deleted. Bring it back, with "
            f"MLFLOW_TRACKING_URI set to that address: mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return found.experiment_id


class TrackedStage:
    """The MLflow run of a stage under way. Metrics are sent in batches; what a lost server did not take waits for the next
    try, and a server that stays away costs the metrics, not the stage."""

    def __init__(self, client: MlflowClient, run_id: str):
        self.client, self.run_id = client, run_id
        self._waiting: list[Metric] = []
        self._known: set[tuple[str, int]] = set()  # what a former process of this run has logged: name, step
        self._next, self._lost = time.monotonic() + FLUSH_SECONDS, False

    def catch_up(self, steps: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Go on with a run whose process was killed. steps: all that were logged; what MLflow lacks of them is sent.

        Those after the last checkpoint are computed again, and logged once all the same.
        """
        if not (logged := {(key, step): value for step, metrics in steps for key, value in metrics.items()}):
            return
        there: set[tuple[str, int]] = set()

        def ask() -> None:
            for key in {key for key, _ in logged}:
                there.update((key, m.step) for m in self.client.get_metric_history(self.run_id, key))

        if not self.survive(ask):
            return
        now = int(time.time() * 1000)
        self._waiting += [Metric(key, value, now, step) for (key, step), value in logged.items() if (key, step) not in there]
        self._known = there | set(logged)
        self.flush()

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._waiting += [Metric(k, v, now, step) for k, v in metrics.items() if (k, step) not in self._known]
        del self._waiting[:-MOST]
        if time.monotonic() > self._next:
            self.flush()

    def log_result(self, metrics: Mapping[str, Any], *, seconds: float) -> None:
        """The stage's closing metrics (nested names joined by a dot) and its wall time in seconds; sent as the run ends."""
        now = int(time.time() * 1000)
        numbers = {**flatten(metrics), "seconds": seconds}
        self._waiting += [Metric(f"result.{k}", float(v), now, 0) for k, v in numbers.items() if isinstance(v, int | float)]

    def log_outs(self, md5s: Mapping[str, str]) -> None:
        """The md5 of each path that the stage has written: what its run is found by."""
        tags = [RunTag(key, md5) for key, md5 in _tags("out", md5s).items()]
        self.survive(lambda: _in_batches(tags, lambda some: self.client.log_batch(self.run_id, tags=some)))

    def flush(self) -> None:
        began = time.monotonic()
        while self._waiting and self.survive(lambda: self.client.log_batch(self.run_id, metrics=self._waiting[:BATCH])):
            del self._waiting[:BATCH]
        ended = time.monotonic()
        self._next = ended + max(FLUSH_SECONDS, PAUSE * (ended - began))

    def survive(self, call: Callable[[], object]) -> bool:
        """Run one request; if the tracker is gone, or refuses it, say so once and go on. Returns whether it was answered."""
        try:
            call()
            return True
        except Exception as error:
            refused = isinstance(error, MlflowException) and error.error_code in REFUSALS
            if not self._lost:
                what = "takes no more of this run" if refused else "no longer answers"
                print(
                    f"\nMLflow at {shown()} {what} ({type(error).__name__}); the stage goes on. Its metrics are sent if "
                    "that changes, else they are missing there. Its outs and metrics files are not affected.",
                    file=sys.stderr,
                )
            self._lost = True
            return refused  # an answer, and the same one next time


@contextmanager
def stage_run(
    name: str, params: Mapping[str, Any], deps: Mapping[str, str], *, file: str | None = None, scratch: Path | None = None
) -> Iterator[TrackedStage]:
    """One MLflow run around a stage: its parameters, the md5 of each dep, the git commit; ended as finished or failed.

    scratch: a folder that outlives a killed process; the run that is named there is gone on with.
    """
    file = file or name.partition("@")[0]
    tags = {"mlflow.runName": name, "pruneonce.stage": name, **origin(f"stages/{file}.py"), **_process()}
    if parent := os.environ.get(PARENT):
        tags["mlflow.parentRunId"] = parent
    tags |= _tags("dep", deps)
    with store(" Nothing was started.") as (client, experiment):
        run_id = _resumed(client, experiment, scratch, tags)
        if run_id is None:
            run_id = client.create_run(experiment, tags=tags, run_name=name).info.run_id
        _log_params(client, run_id, params)
        _close_lost(client, experiment)

    tracked, status = TrackedStage(client, run_id), "FAILED"
    try:
        if scratch:
            _name(scratch / RUN, run_id)
        yield tracked
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        tracked.flush()
        tracked.survive(lambda: client.set_terminated(run_id, status))


def _resumed(client: MlflowClient, experiment: str, scratch: Path | None, tags: Mapping[str, str]) -> str | None:
    """The run that is named in the scratch folder, open again and ours; None if there is none, or if it was deleted."""
    run_id = _named(scratch / RUN) if scratch else None
    if run_id is None:
        return None
    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code not in REFUSALS:
            raise
        return None  # of another store
    if info.experiment_id != experiment or info.lifecycle_stage != "active":
        return None
    # First whose it is: a run that is open, and of a process that is gone, is closed by the next one that looks.
    _in_batches([RunTag(*tag) for tag in tags.items()], lambda some: client.log_batch(run_id, tags=some))
    client.update_run(run_id, status="RUNNING")
    return run_id


def _named(file: Path) -> str | None:
    """The id of a run that a file holds; None if there is no such file, or if it was cut short or damaged."""
    with contextlib.suppress(OSError, ValueError):
        text = file.read_text(encoding="ascii")
        return text if re.fullmatch("[0-9a-f]{32}", text) else None
    return None


def _name(file: Path, run_id: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir():  # a damaged scratch folder
        shutil.rmtree(file)
    file.write_text(run_id)


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    entries = [Param(k, str(v)) for k, v in params.items()]
    _in_batches(entries, lambda some: client.log_batch(run_id, params=some))


def _in_batches(entries: Sequence[Any], send: Callable[[Sequence[Any]], object]) -> None:
    for start in range(0, len(entries), BATCH):
        send(entries[start : start + BATCH])


def _process() -> dict[str, str]:
    """Tags: the machine, and this process with the second it started in, for its number is given to others later."""
    return {HOST: socket.gethostname(), PROCESS: f"{os.getpid()} {psutil.Process().create_time():.2f}"}


def _lives(process: str) -> bool:
    """Whether such a process is there. On a machine of its own in the same name, say a container's, it would not be seen:
    its run is then closed as killed, and as finished when it ends."""
    number, _, started = process.partition(" ")
    with contextlib.suppress(psutil.NoSuchProcess, ValueError):
        return abs(psutil.Process(int(number)).create_time() - float(started)) < CLOCK_SECONDS
    return False


def close_lost() -> list[str]:
    """Close the runs of this machine that a process left open when it was killed. Returns their names."""
    with store() as (client, experiment):
        return _close_lost(client, experiment)


def _close_lost(client: MlflowClient, experiment: str) -> list[str]:
    mine = f"attributes.status = 'RUNNING' and tags.`{HOST}` = '{socket.gethostname()}'"
    lost = [run for run in client.search_runs([experiment], mine) if not _lives(run.data.tags.get(PROCESS, ""))]
    return [run.info.run_name for run in lost if _closed(client, run.info.run_id)]


def _closed(client: MlflowClient, run_id: str) -> bool:
    """Close a lost run, if that may be: another process may have deleted it by now, and ours has work to do."""
    try:
        client.set_terminated(run_id, "KILLED")
    except MlflowException as error:
        if error.error_code not in REFUSALS:
            raise
        return False
    return True


def start_flow(name: str, params: Mapping[str, Any]) -> str:
    """The parent run of one flow run. Returns its id."""
    tags = {"pruneonce.flow": name, **origin("flows/compress.py"), **_process()}
    with store(" Nothing was started.") as (client, experiment):
        _close_lost(client, experiment)
        run_id = client.create_run(experiment, tags=tags, run_name=name).info.run_id
        _log_params(client, run_id, flatten(params))
    return run_id


def end_flow(run_id: str, status: str, seconds: Mapping[str, float], note: str = "") -> None:
    """Close the parent run: the wall time of each stage, a note in Markdown. A tracker that is gone is said, not raised."""
    try:
        client, _ = connect()
    except TrackerUnreachable:
        print(f"\nMLflow at {shown()} no longer answers; run {run_id} stays open there.", file=sys.stderr)
        return
    tracked = TrackedStage(client, run_id)
    now = int(time.time() * 1000)
    metrics = [Metric(f"seconds.{k.replace('@', '.')}", v, now, 0) for k, v in seconds.items()]
    tracked.survive(lambda: client.log_batch(run_id, metrics=metrics))
    if note:
        tracked.survive(lambda: client.set_tag(run_id, "mlflow.note.content", note))
    tracked.survive(lambda: client.set_terminated(run_id, status))


def seal(run_id: str, outs: Mapping[str, str], stages: Mapping[str, Stage]) -> str | None:
    """Write the md5s of what it made into a run, and whether DVC recorded them: then also those of all deps.

    Returns its stage, or None if DVC recorded another execution, or the run is gone. Raises TrackerUnreachable.
    """
    with store() as (client, _):
        try:
            tags = client.get_run(run_id).data.tags | _tags("out", outs)
            stage = stages.get(tags.get("pruneonce.stage", ""))
            recorded = {**_tags("dep", stage.deps), **_tags("out", stage.outs)} if stage else {}
            same = bool(stage) and all(tags.get(key, md5) == md5 for key, md5 in recorded.items())
            new = _tags("out", outs) | ({**recorded, "pruneonce.sealed": "true"} if same else {})
            _in_batches([RunTag(*tag) for tag in new.items()], lambda some: client.log_batch(run_id, tags=some))
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            return None
    return stage.name if stage and same else None


def _tags(kind: str, md5s: Mapping[str, str]) -> dict[str, str]:
    """Path -> md5 as tags `dep.<path>`: of the path's characters those that MLflow takes, `up` for a leading `..`."""

    def name(path: str) -> str:
        parts = ["up" if part == ".." else part for part in posixpath.normpath(path).split("/")]
        return re.sub(r"[^\w./: -]", "_", "/".join(parts))

    return {f"{kind}.{name(path)}": md5 for path, md5 in md5s.items()}


def runs_of(stage: Stage) -> list[str]:
    """The runs that computed these very outs, newest first: also those whose outs came from DVC's cache since.

    Raises TrackerUnreachable.
    """
    outs = "".join(f" and tags.`{key}` = '{md5}'" for key, md5 in _tags("out", stage.outs).items())
    query = f"tags.`pruneonce.stage` = '{stage.name}'{outs}"
    with store() as (client, experiment):
        return [run.info.run_id for run in client.search_runs([experiment], query, order_by=["start_time DESC"])]


def results(run_ids: Sequence[str]) -> dict[str, float]:
    """The closing metrics of the newest of these runs, by name; empty if there is none. Raises TrackerUnreachable."""
    with store() as (client, _):
        metrics = client.get_run(run_ids[0]).data.metrics if run_ids else {}
    return {key.removeprefix("result."): value for key, value in metrics.items() if key.startswith("result.")}


def origin(source: str) -> dict[str, str]:
    """Who runs which file of which commit, and whether tracked files differ from it: tags that MLflow's pages show."""

    def git(*args: str) -> str:
        try:
            done = subprocess.run(["git", *args], capture_output=True, text=True)
        except OSError:  # there is none
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = "unknown"
    commit = git("rev-parse", "HEAD") or "none"
    return {
        "mlflow.user": user,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": source,
        "mlflow.source.git.commit": commit,
        "pruneonce.dirty": str(bool(git("status", "--porcelain", "-uno"))).lower(),
    }


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
