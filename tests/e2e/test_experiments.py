"""`dvc exp run --temp` and `--queue` work in a copy that is gone when they end: its runs are the project's."""

import os
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.conftest import copy_project, copy_store
from tests.e2e.conftest import environment

pytestmark = pytest.mark.slow
STAGE = "fetch_local@corpus"


@pytest.mark.parametrize(
    "commands",
    [
        [["dvc", "exp", "run", "--temp", "--name", "one", STAGE]],
        [["dvc", "exp", "run", "--queue", "--name", "one", STAGE], ["dvc", "exp", "run", "--run-all"]],
    ],
    ids=["temp", "queue"],
)
def test_an_applied_experiment_is_traced_to_its_run(tmp_path: Path, commands: list[list[str]], empty_store: Path):
    folder, home = copy_project(tmp_path / "copy"), tmp_path / "prefect"
    copy_store(empty_store, folder)
    (folder / "params.yaml").write_text((folder / "profiles/tiny.yaml").read_text())
    names = {f"GIT_{who}_{what}": "t@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = {**environment(folder, home), **names, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}  # a copy has its own code

    def run(*words: str, fine: tuple[int, ...] = (0,)) -> str:
        with (tmp_path / "said").open("w") as log:  # not a pipe: DVC's worker stays, and would hold it
            done = subprocess.run(words, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=300)
        said = (tmp_path / "said").read_text()
        assert done.returncode in fine, said
        return said

    for words in commands:
        run(*words)
    run("dvc", "exp", "apply", "one", fine=(0, 255))  # it misses the outs of stages that were never run
    runs = MlflowClient(f"sqlite:///{folder}/mlflow.db").search_runs(["1"])
    stage, parent = sorted(runs, key=lambda r: "pruneonce.stage" not in r.data.tags)
    assert [(r.info.run_name, r.info.status) for r in (stage, parent)] == [(STAGE, "FINISHED"), ("one", "FINISHED")]
    assert stage.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert stage.info.run_id[:8] in run("python", "-m", "pipeline.cli", "trace", "data/raw/corpus")
