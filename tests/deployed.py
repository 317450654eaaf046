"""A project in git with one task whose runs are written, not computed: what `pruneonce promote` finds there."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline import stopping
from pipeline.gates import Measured
from pipeline.hashing import file_md5
from pipeline.params.reading import read_yaml
from pipeline.tracking import address, champions, committed, lock, registry, versions
from pipeline.tracking.open_run import md5_tags
from pipeline.tracking.store import EXPERIMENT
from tests.answers import GATES, write
from tests.conftest import copy_store

ROOT = Path(__file__).parents[1]
TASK = "topic"
MODEL = versions.model(TASK)
FILE = f"data/export/{TASK}/int8.onnx"


def git(*words: str) -> None:
    subprocess.run(["git", *words], check=True, capture_output=True)


def commit(message: str = "a run") -> None:
    git("add", "--all")
    git("-c", "user.name=me", "-c", "user.email=me@example.org", "commit", "-qm", message)


class Project:
    """The folder of the test, in git, with the tiny profile as its params.yaml."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: Path | None = None):
        """store: an empty store of MLflow's, whose migration takes seconds; None: no run is tracked."""
        text = (ROOT / "profiles/tiny.yaml").read_text()
        for key, value in GATES.model_dump().items():
            text = re.sub(rf"(?m)^  {key}: \S+", f"  {key}: {value}", text)
        Path("params.yaml").write_text(text)
        stages = {name: {"foreach": "${tasks}", "do": {"cmd": name}} for name in ("export", "evaluate")}
        stages["sparsify"] = {"cmd": "sparsify"}
        Path("dvc.yaml").write_text(json.dumps({"stages": stages}) + "\n")
        Path(".gitignore").write_text("/data/\n/mlflow.db*\n/mlruns/\n/.pruneonce/\n")
        git("init", "-q")
        commit("a project")
        self.tracked = store is not None
        if store is not None:
            copy_store(store, Path.cwd())
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path.cwd()}/mlflow.db")
        for name in (stopping.RAN, stopping.PARENT, committed.EXPERIMENT):
            monkeypatch.delenv(name, raising=False)
        # What MLflow saves of a model is tested with the registry.
        monkeypatch.setattr(registry, "_store", lambda client, run_id, path: f"runs:/{run_id}/{path.stem}")

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(address.uri())

    def run(self, found: Measured, content: str, *, seed: int = 1) -> dict[str, lock.Stage]:
        """What a run leaves behind: the file, what was measured, dvc.lock, MLflow's runs. Nothing is committed."""
        path = Path(FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        files = write(found)
        values = read_yaml(Path("params.yaml"))
        common = {**values["common"], "seed": seed}
        sparse = Path("data/sparsify")
        sparse.write_text(str(values["sparsify"]))
        reads = {"sparsify": [], f"export@{TASK}": [sparse], f"evaluate@{TASK}": [path]}
        more = {"sparsify": {"sparsify": values["sparsify"]}}
        writes = {
            "sparsify": [sparse],
            f"export@{TASK}": [path, files["export"]],
            f"evaluate@{TASK}": [files[name] for name in ("scores", "latencies", "answers")],
        }
        entries = {
            name: {
                "cmd": name,
                "deps": [{"path": str(each), "md5": file_md5(each)} for each in deps],
                "params": {"params.yaml": {"common": common, **more.get(name, {})}},
                "outs": [{"path": str(each), "md5": file_md5(each)} for each in writes[name]],
            }
            for name, deps in reads.items()
        }
        Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": entries}, indent=1))
        stages = lock.current()
        if self.tracked:
            self._track(stages, found)
        return stages

    def _track(self, stages: dict[str, lock.Stage], found: Measured) -> None:
        """MLflow's runs of both stages, as `runs_of` finds them."""
        (experiment,) = self.client.search_experiments(filter_string=f"name = '{EXPERIMENT}'")
        for name, stage in stages.items():
            tags = {"pruneonce.stage": name, **md5_tags("outs", stage.outs)}
            run = self.client.create_run(experiment.experiment_id, tags=tags)
            if name.startswith("evaluate"):
                self.client.log_metric(run.info.run_id, "result.int8.score", found.scores["int8"]["score"])

    def versions(self, *scores: float) -> None:
        """Registered versions, each promoted after the one before."""
        self.client.create_registered_model(MODEL)
        for number, score in enumerate(scores, 1):
            self.client.create_model_version(MODEL, "runs:/none/int8", tags={"score": str(score)})
            champions.move(self.client, MODEL, "champion", str(number), champions.PROMOTION, "5 gates hold")

    def aliases(self) -> dict[str, int]:
        """Alias -> version of the registered model."""
        found = self.client.search_registered_models(f"name = '{MODEL}'")
        return dict(found[0].aliases) if found else {}
