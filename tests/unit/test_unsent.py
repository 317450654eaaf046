"""What MLflow did not take is kept, and sent once: also after a try that was cut short, and to its own store alone."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from flows import checkout
from pipeline.tracking import unsent
from pipeline.tracking.open_run import OpenRun


class Server:
    """An MLflow client that keeps what it is sent, and fails at the request of a number."""

    def __init__(self, fails_at: int = sys.maxsize, error: Exception | None = None):
        self.fails_at, self.error, self.asked = fails_at, error or ConnectionError("gone"), 0
        self.metrics: list[Metric] = []
        self.tags: dict[str, str] = {}
        self.ended: list[tuple[str, int | None]] = []

    def _ask(self) -> None:
        self.asked += 1
        if self.asked >= self.fails_at:
            raise self.error

    def log_batch(self, run_id: str, metrics=(), tags=()) -> None:
        self._ask()
        self.metrics += metrics
        self.tags |= {tag.key: tag.value for tag in tags}

    def set_terminated(self, run_id: str, status: str, end_time: int | None = None) -> None:
        self._ask()
        self.ended.append((status, end_time))

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        self._ask()
        return [m for m in self.metrics if m.key == key]

    def get_run(self, run_id: str) -> SimpleNamespace:
        self._ask()
        data = SimpleNamespace(metrics={m.key: m.value for m in self.metrics})
        return SimpleNamespace(data=data, info=SimpleNamespace(run_name="sparsify"))


METRICS = [Metric(key, 1.0 / (step + 1), 1000 + step, step) for step in range(250) for key in ("loss", "lr")]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(unsent.PLACE, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    return tmp_path / ".pruneonce/unsent"


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def sent(server: Server) -> dict[tuple[str, int], tuple[float, int]]:
    """(name, step) -> value and time; fails if one is there twice."""
    assert len({(m.key, m.step) for m in server.metrics}) == len(server.metrics)
    return {(m.key, m.step): (m.value, m.timestamp) for m in server.metrics}


def test_what_was_kept_is_sent_with_its_times_tags_and_end(folder):
    unsent.keep("r", metrics=METRICS, tags={"pruneonce.outs": "{}"}, status="FINISHED")
    assert "secret" not in files(folder)[0].read_text()
    server = Server()
    (said,) = unsent.send(server)
    assert said == "MLflow at http://127.0.0.1:9 has now all of sparsify (run r): 500 metrics that were kept were sent."
    assert sent(server) == {(m.key, m.step): (m.value, m.timestamp) for m in METRICS}
    assert server.tags == {"pruneonce.outs": "{}"}
    ((status, ended),) = server.ended
    assert status == "FINISHED"
    assert ended == pytest.approx(Path(".").stat().st_mtime * 1000, abs=60_000)
    assert not files(folder)
    assert list(unsent.send(server)) == []


REQUESTS = 11  # the history of two metrics, six requests of metrics, a tag, the end, the name of the run


@pytest.mark.parametrize("fails_at", range(1, REQUESTS + 1))
def test_a_try_that_was_cut_short_anywhere_doubles_nothing(folder, fails_at):
    unsent.keep("r", metrics=METRICS, tags={"a": "b"}, status="FINISHED")
    server = Server(fails_at)
    (said,) = unsent.send(server)
    assert "did not take what is kept in" in said
    assert said.endswith("(ConnectionError); it stays there.")
    server.fails_at = sys.maxsize
    list(unsent.send(server))
    assert len(sent(server)) == 500
    assert {status for status, _ in server.ended} == {"FINISHED"}
    assert not files(folder)


def test_no_try_asks_more_often_than_the_test_above_thinks():
    unsent.keep("r", metrics=METRICS, tags={"a": "b"}, status="FINISHED")
    server = Server()
    list(unsent.send(server))
    assert server.asked == REQUESTS


def test_a_process_that_is_killed_while_it_closes_its_run_has_kept_all(folder):
    class Killed(BaseException):
        pass

    server = Server(fails_at=2, error=Killed())
    run = OpenRun(server, "r")
    for step in range(200):
        run.log_step(step, {"loss": 1.0})
    run.log_outs({"data/x": "1" * 32})
    with pytest.raises(Killed):
        run.end("FINISHED")
    assert len(server.metrics) == 90
    server.fails_at = sys.maxsize
    list(unsent.send(server))
    assert [step for _, step in sent(server)] == list(range(200))
    assert set(server.tags) == {"pruneonce.outs", "pruneonce.outs.digest"}
    assert server.ended[0][0] == "FINISHED"


def test_a_run_that_goes_on_logs_what_was_kept_itself_and_is_not_ended_by_it(folder):
    unsent.keep("r", metrics=METRICS, status="KILLED")
    unsent.keep("other", metrics=METRICS[:2], status="FINISHED")
    unsent.drop("r")
    assert [file.name.split("-")[0] for file in files(folder)] == ["other"]


def test_the_ends_of_a_run_are_sent_in_their_order(monkeypatch):
    for second, status in enumerate(("KILLED", "FINISHED")):
        monkeypatch.setattr(unsent.time, "time", lambda second=second: 1_700_000_000.0 + second)
        unsent.keep("r", status=status)
    server = Server()
    assert len(list(unsent.send(server))) == 2
    assert server.ended == [("KILLED", 1_700_000_000_000), ("FINISHED", 1_700_000_001_000)]


def test_what_is_for_another_store_waits_for_it(folder, monkeypatch):
    unsent.keep("r", metrics=METRICS)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:10")
    server = Server()
    assert list(unsent.send(server)) == []
    assert (server.metrics, len(files(folder))) == ([], 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:another@127.0.0.1:9")
    list(unsent.send(server))
    assert len(sent(server)) == 500


def test_what_was_deleted_in_the_store_is_dropped_with_a_line(folder):
    unsent.keep("r", metrics=METRICS)
    (said,) = unsent.send(Server(1, MlflowException("no run", error_code=RESOURCE_DOES_NOT_EXIST)))
    assert "takes no more of run r" in said
    assert not files(folder)


@pytest.mark.parametrize("content", [b"", b"[]\n", b'{"run": "r"}\n', b"\xff\xfe", b'{"run": "r", "store": "x"\n'])
def test_a_damaged_file_is_set_aside_with_a_line_and_stops_nothing(folder, content):
    unsent.keep("r", metrics=METRICS[:2])
    files(folder)[0].with_name("a-0-00000000.jsonl").write_bytes(content)
    server = Server()
    damaged, whole = unsent.send(server)
    assert "found" in damaged
    assert damaged.endswith("It is set aside.")
    assert whole.endswith("2 metrics that were kept were sent.")
    assert [path.name for path in folder.glob("*.damaged")] == ["a-0-00000000.damaged"]
    assert list(unsent.send(server)) == []


@pytest.mark.parametrize("name", ["train.jsonl", "train-1-2.jsonl", "x-1-0123456g.jsonl"])
def test_a_file_of_another_name_is_somebody_elses(folder, name):
    """PRUNEONCE_SCRATCH may name a place that holds more."""
    unsent.keep("r", metrics=METRICS[:1])
    theirs = folder / name
    theirs.write_text('{"text": "not ours"}\n')
    assert len(list(unsent.send(Server()))) == 1
    assert theirs.read_text() == '{"text": "not ours"}\n'


def test_numbers_that_json_does_not_know_come_back(folder):
    unsent.keep("r", metrics=[Metric("loss", float("inf"), 1, 0)])
    server = Server()
    list(unsent.send(server))
    assert server.metrics[0].value == float("inf")


def test_a_disk_that_does_not_take_it_is_one_line_and_leaves_nothing(folder, monkeypatch, capsys):
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    run = OpenRun(Server(fails_at=1), "r")
    run.log_step(0, {"loss": 1.0})
    run.end("FINISHED")
    lines = [line for line in capsys.readouterr().err.splitlines() if "expected room" in line]
    assert len(lines) == 1
    assert "No space left on device. It is missing there, in run r." in lines[0]
    assert list(folder.iterdir()) == []


def test_a_clone_of_one_run_keeps_it_beside_the_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setenv(unsent.PLACE, str(tmp_path / "shared"))
    unsent.keep("r", metrics=METRICS)
    assert len(files(tmp_path / "shared")) == 1


def test_two_projects_that_share_the_place_have_two_stores(tmp_path, monkeypatch):
    """Each has the default store: a file of one name, in its own folder."""
    monkeypatch.setenv(unsent.PLACE, str(tmp_path / "shared"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    server = Server()
    for project in ("one", "other"):
        (tmp_path / project).mkdir()
        monkeypatch.chdir(tmp_path / project)
        assert list(unsent.send(server)) == [], "the other's is left alone"
        unsent.keep(project, metrics=METRICS[:1])
    assert len(files(tmp_path / "shared")) == 2
    assert len(list(unsent.send(server))) == 1
    assert [file.name.partition("-")[0] for file in files(tmp_path / "shared")] == ["one"]


def test_what_a_cell_of_a_sweep_keeps_is_found_by_the_project(tmp_path, folder, monkeypatch):
    """The cell is computed in a clone, with the store and the scratch folder of the project."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "clone").mkdir()
    with checkout.inside(tmp_path / "clone"):
        unsent.keep("r", metrics=METRICS[:1])
    assert len(files(folder)) == 1
    assert len(list(unsent.send(Server()))) == 1
    assert files(folder) == []
