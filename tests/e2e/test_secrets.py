"""A password in MLFLOW_TRACKING_URI is neither shown nor stored: by a stage, the flow, trace, register or Prefect."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import copy_project
from tests.e2e.conftest import environment

PASSWORD = "-".join(("s3cr3t", "w0rd"))  # this file is in the copy, too

pytestmark = pytest.mark.slow


def test_a_password_is_found_nowhere(tmp_path: Path):
    """Of a server that does not answer, whose address is in every message."""
    folder, home = copy_project(tmp_path / "copy"), tmp_path / "prefect"
    home.mkdir()
    (folder / "params.yaml").write_text((folder / "profiles/tiny.yaml").read_text())
    env = environment(folder, home) | {"MLFLOW_TRACKING_URI": f"http://me:{PASSWORD}@127.0.0.1:9/mlflow"}
    (folder / "x").write_text("x")
    (folder / "dvc.lock").write_text(
        "schema: '2.0'\nstages: {report: {cmd: x, outs: [{path: x, md5: 9dd4e461268c8034f5c8564e155c67a6}]}}\n"
    )
    said = ""
    for words in (
        ["dvc", "repro", "fetch_local@corpus"],
        [sys.executable, "-m", "flows.compress"],
        [sys.executable, "-m", "pipeline.cli", "trace", "x"],
        [sys.executable, "-m", "pipeline.cli", "register"],
    ):
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
        assert "http://127.0.0.1:9/mlflow" in done.stdout + done.stderr, done.stderr[-3000:]
        said += done.stdout + done.stderr
    assert PASSWORD not in said
    files = [path for top in (folder, home) for path in top.rglob("*") if path.is_file()]
    assert "prefect.db" in {path.name for path in files}
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []
