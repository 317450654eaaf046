"""MLflow: one run per executed stage, under one parent per flow run.

The server is MLFLOW_TRACKING_URI, by default a sqlite file beside params.yaml. It is asked before work starts; if it is
lost later, training goes on and says so, and what was logged meanwhile is sent when it answers again.
"""

import getpass
import os
import posixpath
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

# An unreachable server must be known in seconds: MLflow's own defaults retry for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # it tells every step of its database's migration

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from pipeline.lineage import Stage
from pruneonce.errors import TrackerUnreachable

EXPERIMENT = "pruneonce"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow's pages are those for chat agents
PARENT = "PRUNEONCE_PARENT_RUN"  # set by the flow, read by the stages it starts; never changes an out
FLUSH_SECONDS = 5.0
PAUSE = 20  # after a try, so many times what it took: a server that times out takes a twentieth of the time, not all of it
MOST = 100_000  # entries that wait for a server; then the oldest go
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")  # e.g. the run was deleted
BATCH = 90  # entries a request: the server's limit is 100 params, 1000 metrics


def uri() -> str:
    """Where runs are kept."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def connect() -> tuple[MlflowClient, str]:
    """A client and the id of our experiment. Raises TrackerUnreachable."""
    try:
        client = MlflowClient(tracking_uri=uri())
        return client, _experiment(client)
    except Exception as error:
        raise TrackerUnreachable(
            f"expected an MLflow tracking store at {uri()}, found: {' '.join(str(error).split())[:300]}. Start it, or unset "
            "MLFLOW_TRACKING_URI to use a local file. Nothing was started."
        ) from None


def _experiment(client: MlflowClient) -> str:
    """The id of our experiment, made if there is none yet."""
    if found := client.get_experiment_by_name(EXPERIMENT):
        return found.experiment_id
    try:
        return client.create_experiment(EXPERIMENT, tags=KIND)
    except MlflowException:
        if found := client.get_experiment_by_name(EXPERIMENT):  # another worker made it in between
            return found.experiment_id
        raise


class TrackedStage:
    """The MLflow run of a stage under way. Metrics are sent in batches; what a lost server did not take waits for the next
    try, and a server that stays away costs the metrics, not the stage."""

    def __init__(self, client: MlflowClient, run_id: str):
        self.client, self.run_id = client, run_id
        self._waiting: list[Metric] = []
        self._next, self._lost = time.monotonic() + FLUSH_SECONDS, False

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._waiting += [Metric(key, value, now, step) for key, value in metrics.items()]
        del self._waiting[:-MOST]
        if time.monotonic() > self._next:
            self.flush()

    def log_result(self, metrics: Mapping[str, Any], *, seconds: float) -> None:
        """The stage's closing metrics (nested names joined by a dot) and its wall time in seconds; sent as the run ends."""
        now = int(time.time() * 1000)
        numbers = {**flatten(metrics), "seconds": seconds}
        self._waiting += [Metric(f"result.{k}", float(v), now, 0) for k, v in numbers.items() if isinstance(v, int | float)]

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
                    f"\nMLflow at {uri()} {what} ({type(error).__name__}); the stage goes on. Its metrics are sent if that "
                    "changes, else they are missing there. Its outs and metrics files are not affected.",
                    file=sys.stderr,
                )
            self._lost = True
            return refused  # an answer, and the same one next time


@contextmanager
def stage_run(
    name: str, params: Mapping[str, Any], deps: Mapping[str, str], *, file: str | None = None
) -> Iterator[TrackedStage]:
    """One MLflow run around a stage: its parameters, the md5 of each dep, the git commit; ended as finished or failed."""
    client, experiment = connect()
    file = file or name.partition("@")[0]
    tags = {"mlflow.runName": name, "pruneonce.stage": name, **origin(f"stages/{file}.py")}
    if parent := os.environ.get(PARENT):
        tags["mlflow.parentRunId"] = parent
    tags |= _tags("dep", deps)
    try:
        run = client.create_run(experiment, tags=tags, run_name=name)
        entries = [Param(k, str(v)) for k, v in params.items()]
        for start in range(0, len(entries), BATCH):
            client.log_batch(run.info.run_id, params=entries[start : start + BATCH])
    except MlflowException as error:
        raise TrackerUnreachable(f"expected {uri()} to take a run, found: {error}. Nothing was started.") from None

    tracked, status = TrackedStage(client, run.info.run_id), "FAILED"
    try:
        yield tracked
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        tracked.flush()
        tracked.survive(lambda: client.set_terminated(run.info.run_id, status))


def start_flow(name: str, params: Mapping[str, Any]) -> str:
    """The parent run of one flow run. Returns its id."""
    client, experiment = connect()
    run = client.create_run(experiment, tags={"pruneonce.flow": name, **origin("flows/compress.py")}, run_name=name)
    entries = [Param(k, str(v)) for k, v in flatten(params).items()]
    for start in range(0, len(entries), BATCH):
        client.log_batch(run.info.run_id, params=entries[start : start + BATCH])
    return run.info.run_id


def end_flow(run_id: str, status: str, seconds: Mapping[str, float], note: str = "") -> None:
    """Close the parent run: the wall time of each stage, a note in Markdown. A tracker that is gone is said, not raised."""
    try:
        client, _ = connect()
    except TrackerUnreachable:
        print(f"\nMLflow at {uri()} no longer answers; run {run_id} stays open there.", file=sys.stderr)
        return
    tracked = TrackedStage(client, run_id)
    now = int(time.time() * 1000)
    metrics = [Metric(f"seconds.{k.replace('@', '.')}", v, now, 0) for k, v in seconds.items()]
    tracked.survive(lambda: client.log_batch(run_id, metrics=metrics))
    if note:
        tracked.survive(lambda: client.set_tag(run_id, "mlflow.note.content", note))
    tracked.survive(lambda: client.set_terminated(run_id, status))


def seal(run_id: str, stages: Mapping[str, Stage]) -> str | None:
    """Write the md5s that DVC recorded into a run. Returns its stage, or None if DVC recorded another execution."""
    client, _ = connect()
    try:
        tags = client.get_run(run_id).data.tags
    except MlflowException:
        return None
    stage = stages.get(tags.get("pruneonce.stage", ""))
    if stage is None:
        return None
    deps = _tags("dep", stage.deps)
    if any(tags.get(key, md5) != md5 for key, md5 in deps.items()):
        return None
    entries = [RunTag(k, v) for k, v in {**deps, **_tags("out", stage.outs), "pruneonce.sealed": "true"}.items()]
    for start in range(0, len(entries), BATCH):
        client.log_batch(run_id, tags=entries[start : start + BATCH])
    return stage.name


def _tags(kind: str, md5s: Mapping[str, str]) -> dict[str, str]:
    """Path -> md5 as tags `dep.<path>`: of the path's characters those that MLflow takes, `up` for a leading `..`."""

    def name(path: str) -> str:
        parts = ["up" if part == ".." else part for part in posixpath.normpath(path).split("/")]
        return re.sub(r"[^\w./: -]", "_", "/".join(parts))

    return {f"{kind}.{name(path)}": md5 for path, md5 in md5s.items()}


def runs_of(stage: Stage) -> list[str]:
    """The sealed runs that computed these very outs, newest first: also those whose outs came from DVC's cache since."""
    client, experiment = connect()
    outs = "".join(f" and tags.`{key}` = '{md5}'" for key, md5 in _tags("out", stage.outs).items())
    query = f"tags.`pruneonce.stage` = '{stage.name}'{outs}"
    return [run.info.run_id for run in client.search_runs([experiment], query, order_by=["start_time DESC"])]


def results(run_ids: Sequence[str]) -> dict[str, float]:
    """The closing metrics of the newest of these runs, by name; empty if there is none."""
    client, _ = connect()
    metrics = client.get_run(run_ids[0]).data.metrics if run_ids else {}
    return {key.removeprefix("result."): value for key, value in metrics.items() if key.startswith("result.")}


def origin(source: str) -> dict[str, str]:
    """Who runs which file of which commit, and whether tracked files differ from it: tags that MLflow's pages show."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], capture_output=True, text=True)
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
