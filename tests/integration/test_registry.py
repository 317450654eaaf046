"""The model registry holds what dvc.lock says ships: the same bytes, tagged with what was measured, under one alias."""

import hashlib
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from pipeline import stopping
from pipeline.tracking import address, registry, runs
from pipeline.tracking.lock import Stage
from pruneonce.errors import DataError, TrackerUnreachable
from tests.deployed import commit, git
from tests.pages import blocks

MODEL = "pruneonce-topic"
FILE = "data/export/topic/int8.onnx"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A store of its own, in a folder that git has."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("common: {seed: 1}\n")
    Path(".gitignore").write_text("*\n")
    git("init", "-q")
    git("add", "--force", "params.yaml")
    commit("params")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for name in (stopping.RAN, stopping.PARENT):
        monkeypatch.delenv(name, raising=False)
    return MlflowClient(address.uri())


def locked(content: bytes) -> dict[str, Stage]:
    """What dvc.lock says after this file was exported and evaluated."""
    md5 = hashlib.md5(content).hexdigest()
    path = Path(FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    export = Stage("export@topic", {}, {FILE: md5}, {})
    return {"export@topic": export, "evaluate@topic": Stage("evaluate@topic", {FILE: md5}, {"scores": md5[::-1]}, {})}


def run(stages: dict[str, Stage], score: float = 0.5) -> None:
    """Runs of both stages."""
    for name, result in (("export@topic", {}), ("evaluate@topic", {"int8": {"score": score, "file_bytes": 59181977}})):
        with runs.stage_run(name, {}, stages[name].deps) as tracked:
            tracked.log_numbers("result", result)
            tracked.log_outs(stages[name].outs)


def current(client: MlflowClient):
    return client.get_model_version_by_alias(MODEL, registry.ALIAS)


def test_the_shipped_file_is_registered_with_its_run_and_its_numbers(store, int8_onnx):
    content = int8_onnx.path.read_bytes()
    stages = locked(content)
    run(stages, score=0.9375)
    (line,) = registry.register(stages)
    md5 = hashlib.md5(content).hexdigest()
    assert line == f"models:/{MODEL}@current is version 1, md5 {md5}"
    version = current(store)
    expected = {"md5": md5, "path": FILE, "score": "0.9375", "file_bytes": "59181977", "dirty": "false", "profile": "own"}
    assert {key: version.tags.get(key) for key in expected} == expected
    assert [version.run_id] == runs.runs_of(stages["export@topic"])
    kept = Path(mlflow.artifacts.download_artifacts(f"models:/{MODEL}@current", tracking_uri=address.uri()))
    assert (kept / "model.onnx").read_bytes() == content

    (program,) = [block for block in blocks("python", "docs/deployment.md") if "mlflow.pyfunc" in block]
    words = np.ones((2, 5), np.int64)
    names = {"ids": words, "mask": words}
    exec(program.replace("sqlite:///mlflow.db", address.uri()).replace("pruneonce-r8", MODEL), names)
    assert names["logits"].shape[0] == 2


def test_nothing_new_changes_nothing_and_a_file_that_comes_back_is_not_stored_again(store, int8_onnx, dense_onnx):
    first = locked(int8_onnx.path.read_bytes())
    run(first)
    assert len(list(registry.register(first))) == 1
    assert list(registry.register(first)) == []

    second = locked(dense_onnx.path.read_bytes())  # another file stands there now
    run(second)
    assert len(list(registry.register(second))) == 1
    assert current(store).tags["md5"] == second["export@topic"].outs[FILE]

    again = locked(int8_onnx.path.read_bytes())  # restored from DVC's cache: no new run
    (line,) = registry.register(again)
    assert line == f"models:/{MODEL}@current is version 1, md5 {first['export@topic'].outs[FILE]}"
    assert len(store.search_model_versions(f"name='{MODEL}'")) == 2


def test_a_file_that_was_not_evaluated_as_it_stands_is_not_registered(store, int8_onnx):
    stages = locked(int8_onnx.path.read_bytes())
    stages["evaluate@topic"].deps[FILE] = "0" * 32
    assert list(registry.register(stages)) == []
    assert store.search_registered_models() == []


def test_a_file_that_is_not_what_dvc_lock_says_is_not_stored(store, int8_onnx, dense_onnx):
    """Another commit was checked out, its files were not."""
    stages = locked(int8_onnx.path.read_bytes())
    run(stages)
    Path(FILE).write_bytes(dense_onnx.path.read_bytes())
    assert list(registry.register(stages)) == []
    assert store.search_model_versions(f"name='{MODEL}'") == []


def test_a_file_whose_run_is_in_another_store_is_passed_over(store, int8_onnx):
    assert list(registry.register(locked(int8_onnx.path.read_bytes()))) == []
    assert store.search_model_versions(f"name='{MODEL}'") == []


def test_a_registry_that_fails_is_one_error(store, int8_onnx, monkeypatch):
    stages = locked(int8_onnx.path.read_bytes())
    run(stages)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackerUnreachable, match="expected an MLflow tracking store at http://127"):
        list(registry.register(stages))


def test_a_model_that_fails_keeps_its_error_and_the_lines_before_it(store, int8_onnx, monkeypatch):
    stages = locked(int8_onnx.path.read_bytes())
    run(stages)
    other = {"data/export/other/int8.onnx": "0" * 32}
    stages |= {
        "export@other": Stage("export@other", {}, other, {}),
        "evaluate@other": Stage("evaluate@other", other, {}, {}),
    }

    def runs_of(stage: Stage) -> list[str]:
        if stage.name == "export@other":
            raise DataError("expected a file, found a folder.")
        return runs.runs_of(stage)

    monkeypatch.setattr(registry, "runs_of", runs_of)
    lines = registry.register(stages)
    assert next(lines).startswith(f"models:/{MODEL}@current is version 1")
    with pytest.raises(DataError, match="found a folder"):
        next(lines)
