"""The model registry holds what dvc.lock says ships: the same bytes, tagged with what was measured, under one alias."""

import hashlib
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline import stopping
from pipeline.tracking import address, asked, registry, runs
from pipeline.tracking.lock import Stage
from pruneonce.errors import DataError, TrackerUnreachable
from tests.conftest import copy_store
from tests.deployed import commit, git

MODEL = "pruneonce-topic"
FILE = "data/export/topic/int8.onnx"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> MlflowClient:
    """A store of its own, in a folder that git has."""
    monkeypatch.chdir(tmp_path)
    copy_store(empty_store, tmp_path)
    Path("params.yaml").write_text("common: {seed: 1}\n")
    Path(".gitignore").write_text("*\n")
    git("init", "-q")
    git("add", "--force", "params.yaml")
    commit("params")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for name in (stopping.RAN, stopping.PARENT):
        monkeypatch.delenv(name, raising=False)
    # What MLflow saves of a model is tested with the server that serves it.
    monkeypatch.setattr(registry, "_store", lambda client, run_id, path: f"runs:/{run_id}/{path.stem}")
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


def test_the_shipped_file_is_registered_with_its_run_and_its_numbers(store):
    content = b"one"
    stages = locked(content)
    run(stages, score=0.9375)
    (line,) = registry.register(stages)
    md5 = hashlib.md5(content).hexdigest()
    assert line == f"models:/{MODEL}@current is version 1, md5 {md5}"
    version = current(store)
    expected = {"md5": md5, "path": FILE, "score": "0.9375", "file_bytes": "59181977", "dirty": "false", "profile": "own"}
    assert {key: version.tags.get(key) for key in expected} == expected
    assert [version.run_id] == runs.runs_of(stages["export@topic"])


def test_nothing_new_changes_nothing_and_a_file_that_comes_back_is_not_stored_again(store):
    first = locked(b"one")
    run(first)
    assert len(list(registry.register(first))) == 1
    assert list(registry.register(first)) == []

    second = locked(b"two")  # another file stands there now
    run(second)
    assert len(list(registry.register(second))) == 1
    assert current(store).tags["md5"] == second["export@topic"].outs[FILE]

    again = locked(b"one")  # restored from DVC's cache: no new run
    (line,) = registry.register(again)
    assert line == f"models:/{MODEL}@current is version 1, md5 {first['export@topic'].outs[FILE]}"
    assert len(store.search_model_versions(f"name='{MODEL}'")) == 2


def test_an_alias_that_stands_is_not_moved_where_a_server_gives_its_version_as_text(store, monkeypatch):
    """A database gives a number."""
    stages = locked(b"one")
    run(stages)
    assert len(list(registry.register(stages))) == 1
    plain = MlflowClient.get_registered_model

    def by_http(client: MlflowClient, name: str):
        found = plain(client, name)
        found._aliases = {alias: str(version) for alias, version in found.aliases.items()}
        return found

    monkeypatch.setattr(MlflowClient, "get_registered_model", by_http)
    assert list(registry.register(stages)) == []


def test_a_file_that_was_not_evaluated_as_it_stands_is_not_registered(store):
    stages = locked(b"one")
    stages["evaluate@topic"].deps[FILE] = "0" * 32
    assert list(registry.register(stages)) == []
    assert store.search_registered_models() == []


def test_a_file_that_is_not_what_dvc_lock_says_is_not_stored(store):
    """Another commit was checked out, its files were not."""
    stages = locked(b"one")
    run(stages)
    Path(FILE).write_bytes(b"two")
    assert list(registry.register(stages)) == []
    assert store.search_model_versions(f"name='{MODEL}'") == []


def test_a_file_whose_run_is_in_another_store_is_passed_over(store):
    assert list(registry.register(locked(b"one"))) == []
    assert store.search_model_versions(f"name='{MODEL}'") == []


def test_a_registry_that_fails_is_one_error(store, monkeypatch):
    stages = locked(b"one")
    run(stages)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(TrackerUnreachable, match="expected an MLflow tracking store at http://127"):
        list(registry.register(stages))


def test_a_model_that_fails_keeps_its_error_and_the_lines_before_it(store, monkeypatch):
    stages = locked(b"one")
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


def test_a_question_finds_what_stands_behind_the_first_page(store, monkeypatch):
    """A registry is shared, and a run has an id of its own: no search ends at the newest of them."""
    monkeypatch.setattr(asked, "PAGE", 2)
    experiment = store.get_experiment_by_name("pruneonce").experiment_id
    ids = [store.create_run(experiment).info.run_id for _ in range(5)]
    for run_id in ids:
        assert [run.id for run in asked.beginning(run_id[:12])] == [run_id]
    parent = ids[0]
    for _ in range(3):
        store.create_run(experiment, tags={"mlflow.parentRunId": parent})
    assert len(asked.children(parent)) == 3
    names = [f"model-{i}" for i in range(5)]
    for i, name in enumerate(names):
        store.create_registered_model(name)
        store.create_model_version(name, f"runs:/{parent}/model", tags={"md5": f"{i}cafe" + "0" * 27})
    assert asked.models() == names
    assert [found.model for found in asked.versions_of(["0cafe" + "0" * 27, "4cafe" + "0" * 27])] == ["model-0", "model-4"]
    assert [found.model for found in asked.tagged("3caf")] == ["model-3"]
    assert asked.tagged("5caf") == asked.versions_of(["5cafe"]) == []
