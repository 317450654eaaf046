"""What MLflow did not take of a run: kept in files, and sent once by the next stage, flow or `pruneonce register`.

A file holds a JSON object a line. The first one names the run and the store; the others are metrics, tags and how it ended.
It is written before the last try to send it, so a process that is killed meanwhile loses nothing. A file may have been sent
in part: so the server is asked for what it has, and gets the rest.
"""

import contextlib
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag

from pipeline.scratch import DEFAULT, PLACE
from pipeline.tracking.address import everywhere, home, shown
from pipeline.tracking.store import in_batches, refused
from pruneonce.errors import plain
from pruneonce.files import sync

LOCK = "unsent.lock"
NAME = re.compile(r".+-(\d+-[0-9a-f]{8})\.jsonl")  # of `write`; in it, the time. The folder may hold other people's files
WAIT_SECONDS = 60.0  # for another process that sends


def folder() -> Path:
    """Where the files lie. If scratch folders lie outside of the project, there: it may be a clone for one run.

    A cell of a sweep has the scratch folder of the project that started it: beside that lies what this project looks for.
    """
    scratch = Path(os.environ.get(PLACE) or home() / DEFAULT)
    return scratch.with_name("unsent") if scratch.parts[-2:] == DEFAULT.parts else scratch


def write(
    run_id: str, *, metrics: Sequence[Metric] = (), tags: Mapping[str, str] | None = None, status: str | None = None
) -> Path:
    """Write what is to be sent to a run, whole or not at all. status: how the run ended, now. Raises OSError."""
    now = int(time.time() * 1000)
    lines: list[Mapping[str, Any]] = [{"run": run_id, "store": everywhere()}]
    lines += [{"metric": m.key, "value": m.value, "timestamp": m.timestamp, "step": m.step} for m in metrics]
    lines += [{"tag": key, "value": value} for key, value in (tags or {}).items()]
    lines += [{"status": status, "ended": now}] if status else []
    file = folder() / f"{run_id}-{now}-{uuid.uuid4().hex[:8]}.jsonl"
    part = file.with_suffix(".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        sync(part)
        part.replace(file)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return file


def keep(run_id: str, **what: Any) -> None:
    """`write`; a disk that does not take it is told in a line."""
    try:
        write(run_id, **what)
    except OSError as error:
        print(
            f"\nexpected room in {folder()} for what MLflow did not take, found: {plain(error)}. It is missing there, in "
            f"run {run_id}. Outs and metrics files are not affected.",
            file=sys.stderr,
        )


def drop(run_id: str) -> None:
    """Forget what is kept for a run that goes on: its process logs all of it again, each step once."""
    for file in folder().glob(f"{run_id}-*.jsonl"):
        file.unlink(missing_ok=True)


def _files() -> list[Path]:
    """What is kept, the oldest first."""
    named = ((NAME.fullmatch(path.name), path) for path in folder().glob("*.jsonl"))
    return [path for _, path in sorted((name[1], path) for name, path in named if name)]


def send(client: MlflowClient) -> Iterator[str]:
    """Send what is kept for this store, each metric once. Yields a line for each file. No failure is raised."""
    if not _files():
        return
    with contextlib.suppress(Timeout, OSError), FileLock(folder() / LOCK, timeout=WAIT_SECONDS):
        for file in _files():
            try:
                head, *lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
                if head["store"] == everywhere():
                    yield _send(client, head["run"], lines)
                    file.unlink()
            except (ValueError, KeyError, TypeError) as error:
                file.rename(file.with_suffix(".damaged"))
                yield f"expected what MLflow is to be sent in {file}, found it damaged ({plain(error)}). It is set aside."
            except Exception as error:  # the server is gone again; it must stop no stage
                yield f"MLflow at {shown()} did not take what is kept in {file} ({type(error).__name__}); it stays there."


def _send(client: MlflowClient, run_id: str, lines: Sequence[Mapping[str, Any]]) -> str:
    metrics = [Metric(line["metric"], line["value"], line["timestamp"], line["step"]) for line in lines if "metric" in line]
    tags = [RunTag(line["tag"], line["value"]) for line in lines if "tag" in line]
    ends = [(line["status"], line["ended"]) for line in lines if "status" in line]
    try:
        there = taken(client, run_id, {m.key for m in metrics})
        missing = [m for m in metrics if (m.key, m.step) not in there]
        in_batches(missing, lambda some: client.log_batch(run_id, metrics=some))
        in_batches(tags, lambda some: client.log_batch(run_id, tags=some))
        for status, ended in ends:
            client.set_terminated(run_id, status, ended)
        name = client.get_run(run_id).info.run_name
    except Exception as error:
        if not refused(error):
            raise
        return f"MLflow at {shown()} takes no more of run {run_id}, such as one that was deleted. What was kept is dropped."
    return f"MLflow at {shown()} has now all of {name} (run {run_id}): {len(missing)} metrics that were kept were sent."


def taken(client: MlflowClient, run_id: str, names: set[str]) -> set[tuple[str, int]]:
    """(name, step) of the metrics of these names that the server has."""
    return {(name, m.step) for name in names for m in client.get_metric_history(run_id, name)}
