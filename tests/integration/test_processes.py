"""Several processes: the loss curve of one, and one process that tracks and writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from safetensors import safe_open

from tests.integration import tiny

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
# Two sums of half a batch instead of one: what differs is the order of additions. The model is of float64, but losses and
# scores are added in float32, which ten steps of AdamW make 1e-7 of a loss and 4e-6 of a weight.
SAME = 1e-5


@pytest.fixture(scope="module")
def curves(tmp_path_factory) -> dict[int, list[dict]]:
    """What each process left, by the number of processes; both launches at once."""
    folders = {count: tmp_path_factory.mktemp(f"processes-{count}") for count in (1, 2)}
    running = [
        subprocess.Popen(
            [*LAUNCH, f"--nproc-per-node={count}", "-m", "tests.integration.curve", str(folder)],
            cwd=tiny.ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for count, folder in folders.items()
    ]
    said = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    return {n: [json.loads(path.read_text()) for path in sorted(folder.iterdir())] for n, folder in folders.items()}


def test_two_processes_have_the_loss_curve_of_one(curves):
    (one,), two = curves[1], curves[2]
    assert [found["processes"] for found in two] == [2, 2]
    assert [set(found["rows"]) for found in (one, *two)] == [{8}, {4}, {4}]  # shares, and still
    assert two[0]["losses"] == two[1]["losses"]  # what is logged is the loss of the whole batch
    np.testing.assert_allclose(two[0]["losses"], one["losses"], rtol=SAME)
    assert max(one["losses"]) - min(one["losses"]) > 0.1, "nothing was learned, so nothing was compared"


def test_two_processes_end_with_the_weights_of_one(curves):
    (one,), two = curves[1], curves[2]
    assert two[0]["weights"] == two[1]["weights"]
    assert one["weights"].keys() == two[0]["weights"].keys()
    for name, wanted in one["weights"].items():
        ours, theirs = np.array(two[0]["weights"][name]), np.array(wanted)
        np.testing.assert_array_equal(ours == 0, theirs == 0, err_msg=name)
        np.testing.assert_allclose(ours, theirs, rtol=SAME, atol=SAME, err_msg=name)
    assert len(one["weights"]) > 30


def test_ranges_are_those_of_the_whole_batch_on_every_process(curves):
    """Each process sees half of a batch; a range of its own would differ from the other's by far more."""
    (one,), two = curves[1], curves[2]
    assert two[0]["ranges"] == two[1]["ranges"]
    assert len(one["ranges"]) == 12
    for name, (low, high) in one["ranges"].items():  # a value that rounds the other way moves the layers behind it
        assert two[0]["ranges"][name] == pytest.approx([low, high], abs=0.01 * (high - low)), name


@pytest.fixture
def prepared(project):
    """A project in which everything before teacher preparation has run."""
    for command in tiny.commands(tiny.document()):
        if command.stage in ("fetch_local", "prepare_task", "list_tasks", "prepare_corpus"):
            tiny.run(command, project.folder, tiny.document())
    return project


def shapes(folder: Path) -> dict[str, list[int]]:
    with safe_open(folder / "model.safetensors", "np") as tensors:
        return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118


def test_a_stage_on_two_processes_is_tracked_and_written_once(prepared, tracking_uri):
    def runs() -> list:
        client = MlflowClient(tracking_uri)
        experiment = client.get_experiment_by_name("pruneonce")
        found = client.search_runs([experiment.experiment_id]) if experiment else []
        return [run for run in found if run.data.tags.get("pruneonce.stage") == "prepare_teacher"]

    before, known = set(prepared.snapshot()), len(runs())
    assert prepared.run(*prepared.command("prepare_teacher"), OMP_NUM_THREADS="1").returncode == 0
    model = prepared.folder / "data/prepare_teacher/model"
    alone = {"files": set(prepared.snapshot()) - before, "shapes": shapes(model)}
    history, metrics = (
        prepared.folder / "data/plots/prepare_teacher.csv",
        prepared.folder / "data/metrics/prepare_teacher.json",
    )
    rows, loss = len(history.read_text().splitlines()), json.loads(metrics.read_text())["held_out_loss"]
    for path in alone["files"]:
        (prepared.folder / path).unlink()

    words = [*LAUNCH, "--nproc-per-node=2", *prepared.command("prepare_teacher")[1:]]
    done = prepared.run(*words, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"files": set(prepared.snapshot()) - before, "shapes": shapes(model)} == alone
    assert len(alone["files"]) == 6
    assert len(history.read_text().splitlines()) == rows
    # Not the same curve: a mean over a share's masked tokens weighs a token by how many its share has.
    assert json.loads(metrics.read_text())["held_out_loss"] == pytest.approx(loss, rel=0.01)
    assert len(runs()) == known + 2
    assert runs()[0].info.status == "FINISHED"
