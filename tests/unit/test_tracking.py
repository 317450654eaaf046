"""Where runs are kept, said without a password; what a killed process logged, logged once."""

import base64
import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from pipeline import lineage, tracking
from pipeline.stage import Log
from pruneonce.errors import TrackerUnreachable

PASSWORD = "s3cr3t/p@ss"
FORMS = {
    f"http://me:{PASSWORD}@127.0.0.1:9": "http://127.0.0.1:9",
    "http://me:s3cr3t%2Fp%40ss@127.0.0.1:9/mlflow": "http://127.0.0.1:9/mlflow",
    "https://s3cr3t-token@127.0.0.1:9": "https://127.0.0.1:9",
    "s3cr3t-token@127.0.0.1:9": "127.0.0.1:9",
    "http://me:s3cr3t@[::1": "http://[::1",
    "postgresql://me:s3cr3t@127.0.0.1:9/runs": "postgresql://127.0.0.1:9/runs",
    "postgresql+psycopg2://me:s3cr3t@127.0.0.1:9/runs": "postgresql+psycopg2://127.0.0.1:9/runs",
    "mysql+pymysql://127.0.0.1:9/runs?user=me&password=s3cr3t": "mysql+pymysql://127.0.0.1:9/runs?user=***&password=***",
    "ftp://me:s3cr3t@127.0.0.1": "ftp://127.0.0.1",
}


@pytest.mark.parametrize("address", FORMS)
def test_no_form_of_an_address_is_shown_with_its_password(monkeypatch, capfd, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setattr(tracking.migrations, "MAX_RETRY_COUNT", 1)
    assert tracking.shown() == FORMS[address]
    with pytest.raises(TrackerUnreachable) as caught:
        tracking.connect()
    assert FORMS[address] in str(caught.value)
    tracking.end_flow("r" * 32, "FINISHED", {})
    out, err = capfd.readouterr()
    assert "no longer answers" in err
    assert not any(word in text for word in ("s3cr3t", "p@ss", "p%40ss") for text in (str(caught.value), out, err))


@pytest.mark.parametrize(
    ("address", "error", "expected"),
    [
        ("http://me:s3cr3t@h:1", "at http://me:s3cr3t@h:1/api: gone", "at http://h:1/api: gone"),
        ("http://me:s3cr3t@h:1", "wrong password 's3cr3t' for me", "wrong password '***' for me"),
        ("http://me:p%40ss@h:1", "wrong password p@ss (p%40ss)", "wrong password *** (***)"),
        ("http://tok-123@h:1", "token tok-123 has ended", "token *** has ended"),
        ("http://h:1/a@b", "h:1/a@b: a", "h:1/a@b: a"),
        ("sqlite:////data/me@home/mlflow.db", "no data in /data/me@home", "no data in /data/me@home"),
        ("sqlite:///x.db", "full\n[SQL: INSERT INTO runs]\n[parameters: (1, 2)]", "full"),
    ],
)
def test_what_an_error_repeats_of_the_address(monkeypatch, address, error, expected):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert tracking.said(error) == expected


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server that refuses everything: its address, and who asked."""
    asked: list[str] = []

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Authorization", ""))
            self.send_response(403)
            self.end_headers()
            self.wfile.write(b'{"error_code": "PERMISSION_DENIED", "message": "no"}')

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuse) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{made.server_port}", asked
        made.shutdown()


def test_a_server_is_asked_with_the_password_of_its_address(server, monkeypatch):
    """Though MLflow, which prints its address, was given one without."""
    address, asked = server
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "of another server")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:s3%2Fcr3t@{address}")
    with pytest.raises(TrackerUnreachable, match="PERMISSION_DENIED"):
        tracking.connect()
    assert set(asked) == {"Basic " + base64.b64encode(b"me:s3/cr3t").decode()}
    assert tracking._address() == f"http://{address}"


class TestInACopy:
    """`dvc exp run --temp` and `--queue` work in a copy inside .dvc/tmp/exps, and remove it."""

    @pytest.fixture(params=["tmpab12", "standalone/tmpcd34", "tmpef56/nested/project"])
    def copy(self, request, tmp_path, monkeypatch) -> Path:
        folder = tmp_path / "project/.dvc/tmp/exps" / request.param
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        monkeypatch.delenv(lineage.IN_FLOW, raising=False)
        return folder

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ("", "sqlite:///{home}/mlflow.db"),
            ("sqlite:///runs/other.db?timeout=9", "sqlite:///{home}/runs/other.db?timeout=9"),
            ("sqlite:////elsewhere/mlflow.db", "sqlite:////elsewhere/mlflow.db"),
            ("http://127.0.0.1:9", "http://127.0.0.1:9"),
        ],
    )
    def test_runs_are_kept_by_the_project(self, copy, tmp_path, monkeypatch, given, expected):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        assert lineage.home() == tmp_path / "project"
        assert tracking.uri() == expected.format(home=tmp_path / "project")

    def test_what_waits_for_sealing_waits_in_the_project_and_no_one_waits_for_dvc(self, copy, tmp_path, monkeypatch):
        monkeypatch.setattr(lineage, "_dvc_ancestor", lambda: pytest.fail("the copy's dvc.lock is gone when it ends"))
        lineage.leave_for_sealing("r1", {"data/x": "1" * 32})
        assert json.loads((tmp_path / "project/.pruneonce/unsealed/r1").read_text()) == {"data/x": "1" * 32}
        assert not (copy / ".pruneonce").exists()


@pytest.mark.parametrize("folder", ["project", "project/.dvc/tmp", "project/.dvc/tmp/exps", "a/exps/tmp"])
def test_any_other_folder_is_its_own_project(tmp_path, monkeypatch, folder):
    (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    assert lineage.home() == tmp_path / folder
    assert tracking.uri() == "sqlite:///runs.db"


class Kept:
    """An MLflow client that keeps what it is sent."""

    def __init__(self, metrics: list[Metric]):
        self.metrics = metrics

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        return [m for m in self.metrics if m.key == key]

    def log_batch(self, run_id: str, metrics: list[Metric]) -> None:
        self.metrics += metrics


def test_after_a_kill_each_step_is_logged_once_and_none_is_missing(tmp_path):
    """Killed in step 17 with what MLflow has up to step 13; the checkpoint is of step 10."""
    client, log = Kept([]), Log(tmp_path)
    for step in range(18):
        log(step, {"loss": 1.0 / (step + 1), **({"lr": 0.1} if step % 2 else {}), "tokens_per_second": 9.0})
    client.metrics = [Metric(k, v, 0, s) for s, row in log.steps() for k, v in row.items() if s <= 13]
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('\n3e2b1c0d {"step": 18, "lo')
    tracked = tracking.TrackedStage(client, "r")
    again = Log(tmp_path, tracked.log_step)
    tracked.catch_up(again.steps())
    assert {m.step for m in client.metrics} == set(range(18))
    for step in range(11, 25):
        again(step, {"loss": 1.0 / (step + 1), **({"lr": 0.1} if step % 2 else {}), "tokens_per_second": 8.0})
    tracked.flush()
    logged = [(m.key, m.step) for m in client.metrics]
    assert len(logged) == len(set(logged)) == 25 + 12 + 25
    assert {m.step: m.value for m in client.metrics if m.key == "loss"} == {s: 1.0 / (s + 1) for s in range(25)}


def test_a_first_process_has_nothing_to_catch_up_with(tmp_path):
    class Silent:
        pass

    tracking.TrackedStage(Silent(), "r").catch_up(Log(tmp_path).steps())


def test_the_csv_has_every_fifth_step_and_no_speed(tmp_path):
    log = Log(tmp_path / "scratch")
    for step in range(12):
        log(step, {"loss": 1 / 3 + step, "tokens_per_second": 1e6, **({"held_out": 2.0} if step == 10 else {})})
    log.write_history(tmp_path / "one.csv")
    Log(tmp_path / "scratch").write_history(tmp_path / "resumed.csv")
    expected = "step,loss,held_out\n0,0.333333,\n5,5.33333,\n10,10.3333,2\n"
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "resumed.csv").read_text() == expected
    assert [step for step, _ in log.steps()] == list(range(12)), "every step is kept for MLflow"


def test_a_process_is_told_by_its_number_and_its_start():
    (process,) = (value for key, value in tracking._process().items() if key == tracking.PROCESS)
    number, _, started = process.partition(" ")
    assert tracking._lives(process)
    assert not tracking._lives(f"{number} {float(started) - 60}"), "its number was another's a minute ago"
    assert not any(tracking._lives(wrong) for wrong in ("", "no number", "4194305 1.0", number))


def test_an_error_that_is_no_mlflows_is_one_too(monkeypatch):
    monkeypatch.setattr(tracking, "connect", lambda: (None, "0"))
    began = time.monotonic()
    for error in (MlflowException("x\ny"), RuntimeError("x\ny"), AttributeError("x\ny")):
        with pytest.raises(TrackerUnreachable, match="found: x y") as caught, tracking.store(" So."):
            raise error
        assert str(caught.value).endswith(" So.")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda said: said.replace(b'"loss": 7.0', b'"loss": 9.0'),
        lambda said: said.replace(b'"step": 7', b'"step": 6'),
        lambda said: said[: len(said) // 2] + b"\xff" + said[len(said) // 2 + 1 :],
        lambda said: said[: len(said) // 3] + said[len(said) // 2 :],
        lambda said: said[len(said) // 3 :],
        lambda said: b"\0" * len(said),
    ],
    ids=["a value", "a step", "a byte", "a hole", "no beginning", "zeros"],
)
def test_damaged_steps_are_seen_and_never_told(tmp_path, damage):
    log = Log(tmp_path)
    for step in range(20):
        log(step, {"loss": float(step)})
    (tmp_path / "state.safetensors").touch()
    assert log.whole()
    right = dict(log.steps())
    log.file.write_bytes(damage(log.file.read_bytes()))
    assert all(right[step] == row for step, row in log.steps())
    assert not log.whole()


def test_a_line_that_a_kill_cut_short_takes_no_other_with_it(tmp_path):
    log = Log(tmp_path)
    for step in range(5):
        log(step, {"loss": 1.0})
    log.file.write_bytes(log.file.read_bytes()[:-4])
    assert log.whole()
    for step in range(4, 8):
        Log(tmp_path)(step, {"loss": 1.0})
    assert [step for step, _ in log.steps()] == list(range(8))


def test_a_full_disk_ends_no_training(tmp_path, monkeypatch):
    log = Log(tmp_path / "scratch")
    (tmp_path / "scratch").write_text("in the way of a folder")
    for step in range(6):
        log(step, {"loss": 1.0})
    assert set(log.rows) == {0, 5}


@pytest.mark.parametrize(
    ("login", "given", "expected"),
    [
        ("me@", {"PASSWORD": "apart"}, ("me", "apart")),
        (":p%40ss@", {"USERNAME": "apart"}, ("apart", "p@ss")),
        ("me:pass@", {"USERNAME": "other", "PASSWORD": "other"}, ("me", "pass")),
    ],
)
def test_what_an_address_does_not_hold_of_a_login_is_kept(monkeypatch, login, given, expected):
    names = [f"MLFLOW_TRACKING_{name}" for name in ("USERNAME", "PASSWORD")]
    for name in names:
        monkeypatch.setenv(name, given.get(name.rpartition("_")[2], ""))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{login}host:1")
    assert tracking._address() == "http://host:1"
    assert tuple(os.environ[name] for name in names) == expected
