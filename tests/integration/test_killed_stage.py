"""A stage that is killed again and again ends as one that was not: its bytes, its history, its run in MLflow.

`make faults` kills every stage that trains, as real processes, at random moments. Here one is killed at three chosen ones.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.history import Log
from pipeline.tracking.open_run import OpenRun
from pruneonce.training import resume
from tests.integration.conftest import Project

STAGE = "sparsify"


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_step() -> None:
    """After step 12 was computed and logged, before its state is saved."""
    real = Log.__call__

    def log(self: Log, step: int, metrics: dict[str, float]) -> None:
        real(self, step, metrics)
        if step == 12:
            die()

    Log.__call__ = log  # type: ignore[method-assign]


def while_a_state_is_written() -> None:
    """Of step 21 there is half a file, under the name it has until it is whole."""
    real = resume.save_file

    def save(tensors: dict, path: Path, metadata: dict[str, str]) -> None:
        real(tensors, path, metadata)
        if int(tensors["step"]) == 21:
            os.truncate(path, path.stat().st_size // 2)
            die()

    resume.save_file = save


def at_the_end() -> None:
    """All outs are written, and MLflow has the metrics, but not that the run is finished."""
    OpenRun.end = lambda self, status: (self.flush(), die())  # type: ignore[method-assign, assignment]


def killed(project: Project, arrange: Callable[[], None]) -> None:
    """Run the stage in a process that kills itself. A fork starts at once."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # threads do not survive a fork
        with mock.patch("sys.stderr", (project.folder / "log").open("w")):
            arrange()
            project.main(STAGE)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, (project.folder / "log").read_text()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_stage_that_was_killed_three_times_ends_as_one_that_was_not(computed: Project):
    computed.edit(lambda document: document["machine"].update(checkpoint_seconds=0))
    whole = computed.snapshot()
    before, steps_seen = {run.info.run_id for run in _runs(computed)}, []
    for arrange, states in ((in_a_step, [11, 12]), (while_a_state_is_written, [19, 20]), (at_the_end, [38, 39])):
        killed(computed, arrange)
        (scratch,) = [path for path in (computed.folder / ".pruneonce/scratch").glob(f"{STAGE}-*") if path.is_dir()]
        assert sorted(path.name for path in scratch.glob("*.safetensors")) == [f"state-{n:08}.safetensors" for n in states]
        assert bool(list(scratch.glob("*.part"))) == (arrange is while_a_state_is_written)
        steps_seen.append(_steps(scratch))
    assert computed.main(STAGE).returncode == 0

    again = [later[len(earlier) :] for earlier, later in zip([[], *steps_seen], steps_seen, strict=False)]
    assert again == [list(range(13)), list(range(12, 21)), list(range(20, 40))], "it goes on from the newest whole state"
    assert computed.snapshot() == whole
    assert not [path for path in (computed.folder / ".pruneonce/scratch").iterdir() if path.is_dir()]
    (run,) = [run for run in _runs(computed) if run.info.run_id not in before]
    client = MlflowClient(computed.environment["MLFLOW_TRACKING_URI"])
    assert run.info.status == "FINISHED"
    for name in run.data.metrics:
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
        assert steps == ([0] if name.startswith("result.") else list(range(40))), name


def _runs(project: Project) -> list[Run]:
    """The runs of the stage in the store that all tests share."""
    uri = project.environment["MLFLOW_TRACKING_URI"]
    if not Path(uri.removeprefix("sqlite:///")).exists():
        return []
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("pruneonce")
    return list(client.search_runs([experiment.experiment_id], f"tags.`pruneonce.stage` = '{STAGE}'"))


def _steps(scratch: Path) -> list[int]:
    """Every step that was logged, in the order of its logging."""
    lines = (scratch / "history.jsonl").read_bytes().split(b"\n")
    return [json.loads(line.partition(b" ")[2])["step"] for line in lines if line]
