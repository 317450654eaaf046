"""Where runs are kept, named without a password."""

import base64
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline import stopping
from pipeline.tracking import flow_runs, store
from pipeline.tracking.address import home, message, mlflow_uri, shown, uri
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
def test_no_form_of_an_address_is_shown_with_its_password(monkeypatch, capfd, tmp_path, address):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setattr(store.migrations, "MAX_RETRY_COUNT", 1)
    assert shown() == FORMS[address]
    with pytest.raises(TrackerUnreachable) as caught:
        store.connect()
    assert FORMS[address] in str(caught.value)
    flow_runs.end_flow("r" * 32, "FINISHED")
    out, err = capfd.readouterr()
    assert "no longer answers" in err
    (kept,) = Path(".pruneonce/unsent").glob("*.jsonl")
    texts = (str(caught.value), out, err, kept.read_text())
    assert not any(word in text for word in ("s3cr3t", "p@ss", "p%40ss") for text in texts)


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
    assert message(error) == expected


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
        store.connect()
    assert set(asked) == {"Basic " + base64.b64encode(b"me:s3/cr3t").decode()}
    assert mlflow_uri() == f"http://{address}"


class TestInACopy:
    """`dvc exp run --temp` and `--queue` work in a copy inside .dvc/tmp/exps, and remove it."""

    @pytest.fixture(params=["tmpab12", "standalone/tmpcd34", "tmpef56/nested/project"])
    def copy(self, request, tmp_path, monkeypatch) -> Path:
        folder = tmp_path / "project/.dvc/tmp/exps" / request.param
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        monkeypatch.delenv(stopping.RAN, raising=False)
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
        assert home() == tmp_path / "project"
        assert uri() == expected.format(home=tmp_path / "project")


@pytest.mark.parametrize("folder", ["project", "project/.dvc/tmp", "project/.dvc/tmp/exps", "a/exps/tmp"])
def test_any_other_folder_is_its_own_project(tmp_path, monkeypatch, folder):
    (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    assert home() == tmp_path / folder
    assert uri() == "sqlite:///runs.db"


def test_an_error_of_mlflow_or_the_system_says_that_the_store_failed(monkeypatch):
    monkeypatch.setattr(store, "connect", lambda: (None, "0"))
    began = time.monotonic()
    for error in (MlflowException("x\ny"), OSError("x\ny"), requests.ConnectionError("x\ny")):
        with pytest.raises(TrackerUnreachable, match="found: x y") as caught, store.store(" So."):
            raise error
        assert str(caught.value).endswith(" So.")
    with pytest.raises(TrackerUnreachable, match="found: 'NoneType' object has no attribute"), store.store():
        MlflowClient.get_run(None, "a run")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("error", [KeyError("test_md5"), TypeError("x"), ValueError("x")])
def test_a_fault_of_the_code_is_not_called_one_of_the_store(monkeypatch, error):
    monkeypatch.setattr(store, "connect", lambda: (None, "0"))
    with pytest.raises(type(error)) as caught, store.store():
        raise error
    assert caught.value is error


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
    assert mlflow_uri() == "http://host:1"
    assert tuple(os.environ[name] for name in names) == expected
