"""An MLflow run that is open: what is sent to it while a stage works.

Metrics are sent in batches. If the server does not answer, training goes on, and the metrics wait for the next try. What
it has not taken when the run ends is kept in a file, and sent by a later process (`unsent`).
"""

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag

from pipeline.tracking import unsent
from pipeline.tracking.address import shown
from pipeline.tracking.store import BATCH, in_batches, refused

FLUSH_SECONDS = 5.0
PAUSE = 20  # pause after a try, in durations of that try: a server that times out costs a twentieth of the time
TAG, MOST_CHARACTERS = "pruneonce.", 8000  # of the names of our tags; of a tag's value, by MLflow
MOST = 100_000  # metrics that wait for a server in memory; more than these go into a file


class OpenRun:
    """The MLflow run of a stage or of a flow that is at work."""

    def __init__(self, client: MlflowClient, run_id: str, *, experiment: str | None = None, begun: bool = False):
        """experiment: the run of the `dvc exp run` that this stage belongs to. begun: by an earlier process."""
        self.client, self.run_id, self.experiment = client, run_id, experiment
        self._waiting: list[Metric] = []
        self._tags: dict[str, str] = {}
        self._queued: set[tuple[str, int]] = set()  # (name, step) that is logged once, whoever computes it again
        self._begun = begun  # then the server is asked, before anything is sent, for what it has
        self._next, self._lost, self._spilled = time.monotonic() + FLUSH_SECONDS, False, False

    def catch_up(self, steps: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Continue a run whose process was killed. steps: all that were logged; MLflow is sent those that it lacks.

        The steps after the last checkpoint are computed again, and still logged once.
        """
        if logged := {(key, step): value for step, metrics in steps for key, value in metrics.items()}:
            self._begun = True
            self._waiting += [_metric(key, value, step) for (key, step), value in logged.items()]
            self._queued |= set(logged)
            self.flush()

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step, once."""
        self._waiting += [_metric(key, value, step) for key, value in metrics.items() if (key, step) not in self._queued]
        if time.monotonic() > self._next:
            self.flush()
        if len(self._waiting) > MOST:
            with contextlib.suppress(OSError):
                unsent.write(self.run_id, metrics=self._waiting)
                self._waiting, self._spilled = [], True
        del self._waiting[:-MOST]

    def log_numbers(self, prefix: str, metrics: Mapping[str, Any]) -> None:
        """Log numbers of the run as a whole as `prefix.name`; nested names are joined by a dot. Sent when the run ends."""
        self._waiting += [m for m in numbers(prefix, metrics) if (m.key, m.step) not in self._queued]

    def log_scores(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """Log the scores among the closing metrics by their names, and in the experiment's run by task, to sort runs by."""
        scores = headlines(metrics)
        self.log_numbers("", scores)
        if (above := self.experiment) and scores:
            rows = [_metric(f"{stage.rpartition('@')[2]}.{key}", value, 0) for key, value in scores.items()]
            if not self.survive(lambda: self.client.log_batch(above, metrics=rows)):
                unsent.keep(above, metrics=rows)

    def log_outs(self, md5s: Mapping[str, str]) -> None:
        """Tag the run with the md5 of each path that the stage has written. `runs_of` finds the run by that."""
        self.tag(md5_tags("outs", md5s))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run when it ends."""
        self._tags |= tags

    def flush(self) -> None:
        """Send the metrics that wait."""
        began = time.monotonic()
        self._send()
        ended = time.monotonic()
        self._next = ended + max(FLUSH_SECONDS, PAUSE * (ended - began))

    def _send(self) -> bool:
        """Send the metrics that wait. Returns whether none is left."""
        if self._begun and not self.survive(self._drop_known):
            return False
        while self._waiting and self.survive(lambda: self.client.log_batch(self.run_id, metrics=self._waiting[:BATCH])):
            del self._waiting[:BATCH]
        return not self._waiting

    def _drop_known(self) -> None:
        """Forget of what waits the metrics that the server has of an earlier process, or of a request that timed out."""
        names = set(self.client.get_run(self.run_id).data.metrics)
        there = unsent.taken(self.client, self.run_id, names)
        self._waiting = [m for m in self._waiting if (m.key, m.step) not in there]
        self._queued |= there
        self._begun = False

    def end(self, status: str) -> None:
        """Send what waits, and close the run. It is kept in a file until the server has it (`unsent`)."""
        what: dict[str, Any] = {"metrics": list(self._waiting), "tags": self._tags, "status": status}
        kept = None
        with contextlib.suppress(OSError):
            kept = unsent.write(self.run_id, **what)
        sent = (
            self._send()
            and self.survive(lambda: set_tags(self.client, self.run_id, self._tags))
            and self.survive(lambda: self.client.set_terminated(self.run_id, status))
        )
        if kept is None and not sent:
            unsent.keep(self.run_id, **what)
        elif kept is not None and sent:
            kept.unlink(missing_ok=True)
        if sent and self._spilled:
            for line in unsent.send(self.client):
                print(f"\n{line}", file=sys.stderr)

    def survive(self, request: Callable[[], object]) -> bool:
        """Make a request. A failure is printed once. Returns whether the server answered, also if it refused."""
        try:
            request()
            return True
        except Exception as error:
            if not self._lost:
                problem = "takes no more of this run" if refused(error) else "no longer answers"
                print(
                    f"\nMLflow at {shown()} {problem} ({type(error).__name__}); the stage goes on. Its metrics are sent "
                    "when that changes: by this run, by the next one, or by: pruneonce register. Its outs are not affected.",
                    file=sys.stderr,
                )
            self._lost = True
            return refused(error)


def numbers(prefix: str, metrics: Mapping[str, Any]) -> list[Metric]:
    """The numbers among metrics, of a run as a whole, as `prefix.name`; nested names are joined by a dot."""
    found = {key: value for key, value in flatten(metrics).items() if isinstance(value, int | float)}
    begin = f"{prefix}." if prefix else ""
    return [_metric(f"{begin}{key}", float(value), 0) for key, value in found.items()]


def _metric(key: str, value: float, step: int) -> Metric:
    return Metric(key, value, int(time.time() * 1000), step)


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run."""
    in_batches([RunTag(*tag) for tag in tags.items()], lambda some: client.log_batch(run_id, tags=some))


def md5_tags(kind: str, md5s: Mapping[str, str]) -> dict[str, str]:
    """Path -> md5 as two tags: `pruneonce.<kind>` is JSON, for a reader; runs are found by `pruneonce.<kind>.digest`."""
    written = json.dumps(md5s, sort_keys=True)
    shown = written if len(written) <= MOST_CHARACTERS else f"{len(md5s)} paths, too many for a tag"
    return {f"{TAG}{kind}": shown, f"{TAG}{kind}.digest": hashlib.sha256(written.encode()).hexdigest()}


def headlines(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The scores among the closing metrics of a stage: what runs are sorted by. Such as int8.score, validation_score."""
    flat = {key: value for key, value in flatten(metrics).items() if key.count(".") < 2}
    return {key: value for key, value in flat.items() if key.rpartition(".")[2] in ("score", "validation_score")}


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
