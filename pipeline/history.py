"""The metrics of a stage by step: kept in its scratch folder, sent to MLflow, written as a CSV that DVC plots."""

import contextlib
import csv
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.checkpoints import Checkpoints, Follower, any_in
from pipeline.stopping import Stop
from pruneonce.files import sync

HISTORY_EVERY_STEPS = 5


@dataclass
class Log:
    """Records metrics when it is called with a step and metrics.

    scratch: a folder of this run alone, for its checkpoints. The steps are there too, so a resumed run ends with the same
    CSV and the same metrics in MLflow as an uninterrupted one.
    """

    scratch: Path
    track: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
    rows: dict[int, dict[str, float]] = field(default_factory=dict)
    checkpoint_seconds: float = 60.0  # between two saved states of a training; 0: one after every step
    stop: Stop = field(default_factory=Stop)

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        with contextlib.suppress(OSError):  # a full disk: `whole` is then False, and a resumed run begins at step 0
            self.scratch.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab") as file:
                file.write(_checked_line(json.dumps({"step": step, **metrics}).encode()))
        self.track(step, metrics)
        if step % HISTORY_EVERY_STEPS == 0:
            self.rows[step] = dict(metrics)

    @property
    def file(self) -> Path:
        """All steps, a line each."""
        return self.scratch / "history.jsonl"

    def steps(self) -> Iterator[tuple[int, dict[str, float]]]:
        """The recorded steps, also those of killed processes of this run; a line with a wrong checksum is left out."""
        for line in self.file.read_bytes().split(b"\n") if self.file.exists() else ():  # no step, no file
            _, _, record = line.partition(b" ")
            if line == _checked_line(record).strip():
                row = json.loads(record)
                yield row.pop("step"), row

    def whole(self) -> bool:
        """Whether no step is missing before the last one: only then can the run be resumed."""
        steps = {step for step, _ in self.steps()}
        begun = any_in(self.scratch)  # a saved training has taken some steps
        return steps == set(range(len(steps))) and bool(steps or not begun)

    def checkpoints(self, name: str = "state") -> Checkpoints:
        """The saved states of a training. The steps before a state are on the disk before it is. name: of the training."""
        return self._states(
            self.scratch, name, every_seconds=self.checkpoint_seconds, stop=self.stop, before_saving=self._sync
        )

    _states = Checkpoints

    def _sync(self) -> None:
        with contextlib.suppress(OSError):  # a full disk: `whole` tells later
            sync(self.file)

    def write_history(self, path: Path) -> None:
        """Every fifth step as CSV, one row a step, 6 significant digits."""
        steps = {step: metrics for step, metrics in self.steps() if step % HISTORY_EVERY_STEPS == 0} | self.rows
        # Speed is not a function of deps and params: it goes to MLflow, never into an out.
        rows = [
            {"step": s, **{k: v for k, v in row.items() if k != "tokens_per_second"}} for s, row in sorted(steps.items())
        ]
        columns = list(dict.fromkeys(key for row in rows for key in row)) or ["step", "loss"]
        with path.open("w", newline="") as file:
            out = csv.DictWriter(file, columns, lineterminator="\n")
            out.writeheader()
            out.writerows({k: v if k == "step" else f"{v:.6g}" for k, v in row.items()} for row in rows)


def _checked_line(record: bytes) -> bytes:
    """A line that begins with its checksum. The line break stands before it: a kill may have cut the line before short."""
    return b"\n%08x %s" % (zlib.crc32(record), record)


class Quiet(Log):
    """The log of a process that is not the first one of its launch: it records nothing."""

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def write_history(self, path: Path) -> None:
        pass

    _states = Follower
