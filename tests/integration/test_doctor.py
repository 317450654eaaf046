"""`pruneonce doctor` as a process: fast, light, whole in any folder; and what it reads of MLflow's files."""

import json
import os
import subprocess
import sys

from mlflow.store.db import utils

from pipeline.doctor import servers
from tests.conftest import ROOT


def test_the_schema_that_mlflow_writes_is_read_from_its_files():
    assert servers.schemas()[1] == utils._get_latest_schema_revision()


def test_it_answers_where_there_is_nothing_that_a_check_reads(tmp_path):
    """No finding says that a check failed."""
    for arguments in (["-m", "pruneonce.command"], ["-m", "pipeline.cli"]):
        done = subprocess.run(
            [sys.executable, *arguments, "doctor", "--json"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        found = json.loads(done.stdout)["findings"]
        assert [finding for finding in found if finding["about"] == "doctor"] == []
        assert done.returncode == any(finding["level"] == "problem" for finding in found)
        assert done.stderr == ""


LOADED = """
import argparse, sys
from pipeline.commands import doctor
try:
    list(doctor.lines(argparse.Namespace(json=True)))
except SystemExit:
    pass
print(*sys.modules)
"""


def test_the_checks_import_no_large_library():
    done = subprocess.run([sys.executable, "-c", LOADED], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "pipeline" in loaded
    assert loaded.isdisjoint({"torch", "mlflow", "prefect", "dvc", "transformers", "onnxruntime", "numpy"})
