"""A password or token in an address or a variable is neither shown nor stored: by a stage, the flow, a command, Prefect."""

import subprocess
from pathlib import Path

import pytest

from tests.conftest import copy_project
from tests.e2e.conftest import CANARIES, environment, kept_in, secret

PASSWORD = secret("mlflow")

pytestmark = pytest.mark.slow


def test_a_password_is_found_nowhere(tmp_path: Path):
    """Of a server that does not answer, whose address is in every message."""
    folder, home = copy_project(tmp_path / "copy"), tmp_path / "prefect"
    home.mkdir()
    (folder / "params.yaml").write_text((folder / "profiles/tiny.yaml").read_text())
    env = environment(folder, home) | CANARIES | {"MLFLOW_TRACKING_URI": f"http://me:{PASSWORD}@127.0.0.1:9/mlflow"}
    (folder / "x").write_text("x")
    (folder / "dvc.lock").write_text(
        "schema: '2.0'\nstages: {report: {cmd: x, outs: [{path: x, md5: 9dd4e461268c8034f5c8564e155c67a6}]}}\n"
    )
    said = ""
    for words in (
        ["dvc", "repro", "fetch_local@corpus"],
        ["python", "-m", "flows.compress"],
        ["python", "-m", "pipeline.cli", "trace", "x"],
        ["python", "-m", "pipeline.cli", "register"],
    ):
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
        assert "http://127.0.0.1:9/mlflow" in done.stdout + done.stderr, done.stderr[-3000:]
        said += done.stdout + done.stderr
    assert "prefect.db" in {path.name for path in home.iterdir()}
    assert kept_in(said, folder, home) == []


ADDRESSES = {
    "PREFECT_API_URL": f"http://me:{secret('prefect')}@127.0.0.1:9/api?token={secret('prefect-token')}",
    "MLFLOW_TRACKING_URI": f"postgresql://me:{secret('postgres')}@127.0.0.1:9/runs?password={secret('query')}",
    "PIP_INDEX_URL": f"http://me:{secret('index')}@127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_RETRIES": "0",
}
FETCH = (
    "from pathlib import Path; from pipeline.kept import Kept; from pruneonce.sources.fetch import *; "
    "keep, out = Kept(Path('kept')), Path('data/x'); "
)
INDEX = f"{FETCH} fetch_package('x==1', '0' * 64, {{}}, out, keep=keep)"


def test_no_address_is_shown_with_its_password(tmp_path: Path):
    """Each of a server that does not answer; a remote of git and one of DVC have passwords as well."""
    folder, home = copy_project(tmp_path / "copy"), tmp_path / "prefect"
    home.mkdir()
    (folder / "params.yaml").write_text((folder / "profiles/tiny.yaml").read_text())
    env = environment(folder, home) | CANARIES | ADDRESSES
    (folder / ".dvc/config.local").write_text(
        f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = http://me:{secret('dvc')}@127.0.0.1:9/dvc\n"
        f"    password = {secret('dvc-password')}\n"
    )
    subprocess.run(
        ["git", "remote", "add", "origin", f"https://me:{secret('git')}@git.example.org/x.git"], cwd=folder, check=True
    )
    said = ""
    for words, says in {
        ("-m", "flows.compress"): "expected a Prefect server at http://127.0.0.1:9/api?token=***",
        ("-m", "pipeline.cli", "doctor"): "http://127.0.0.1:9/dvc",
        ("-c", INDEX): "SourceError: expected x==1 from the package index",
    }.items():
        done = subprocess.run(["python", *words], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
        assert says in done.stdout + done.stderr, (done.stdout + done.stderr)[-3000:]
        assert done.returncode == 1
        said += done.stdout + done.stderr
    written = [".git/config", ".dvc/config.local"]  # above
    assert kept_in(said, folder, home) == [str(folder / name) for name in sorted(written)]
