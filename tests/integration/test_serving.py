"""A registered model answers texts over HTTP and in a notebook, with the labels that were evaluated."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pandas
import psutil
import pytest
from mlflow import MlflowClient

from pipeline import hashing
from pipeline.tracking import packaging, registry, runs
from pipeline.tracking.lock import Stage
from pruneonce.deployment import unpacking
from pruneonce.errors import DataError, PackError
from pruneonce.tasks import splits
from tests.conftest import copy_store, wait_for
from tests.integration import tiny
from tests.pages import blocks

MODEL = f"pruneonce-{tiny.TASK}"
PATH = f"data/export/{tiny.TASK}/int8.onnx"


@dataclass
class Server:
    """`mlflow models serve` of a registered model."""

    address: str
    process: psutil.Process

    def post(self, body: Any, **how: Any) -> httpx.Response:
        return httpx.post(f"{self.address}/invocations", **{"json": body, "timeout": 60, **how})

    def answers(self, *texts: str) -> list[dict[str, Any]]:
        found = self.post({"dataframe_records": [{"text": text} for text in texts]})
        assert found.status_code == 200, found.text
        return found.json()["predictions"]


@pytest.fixture(scope="module")
def store(first: tiny.Result, empty_store: Path, tmp_path_factory) -> Iterator[str]:
    """The address of a store in which the tiny task's model is registered."""
    folder = tmp_path_factory.mktemp("store")
    uri = copy_store(empty_store, folder)
    md5 = hashing.file_md5(first[f"export/{tiny.TASK}/int8.onnx"])
    stages = {
        f"export@{tiny.TASK}": Stage(f"export@{tiny.TASK}", {}, {PATH: md5}, {}),
        f"evaluate@{tiny.TASK}": Stage(f"evaluate@{tiny.TASK}", {PATH: md5}, {"scores": "0" * 32}, {}),
    }
    (folder / "data").symlink_to(first.folder / "data")
    (folder / "params.yaml").write_text(tiny.PROFILE.read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        for name, stage in stages.items():
            with runs.stage_run(name, {}, stage.deps) as tracked:
                tracked.log_outs(stage.outs)
        list(registry.register(stages))
        yield uri


@pytest.fixture(scope="module")
def server(store: str, tmp_path_factory) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("served") / "log"
    words = ["-m", "mlflow", "models", "serve", "-m", f"models:/{MODEL}/1", "-p", str(port), "--env-manager", "local"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "MLFLOW_TRACKING_URI": store, "PATH": path, "PRUNEONCE_THREADS": "1"}
    with log.open("w") as said:
        process = subprocess.Popen([sys.executable, *words], env=env, stdout=said, stderr=said, start_new_session=True)
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{address}/ping", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        wait_for("the server", answers, seconds=120, every=0.3, log=log)
        yield Server(address, psutil.Process(process.pid))
    finally:
        for one in (*psutil.Process(process.pid).children(recursive=True), process):
            one.kill()
        process.wait()


@pytest.fixture(scope="module")
def split(first: tiny.Result):
    return splits.read_split(first[f"tasks/{tiny.TASK}/test.arrow"])


def test_the_served_labels_are_those_that_evaluate_counted(first, server, split):
    kept = json.loads(first[f"answers/{tiny.TASK}.json"].read_text())
    answers = server.answers(*split["text"][:])
    assert [kept["classes"].index(answer["label"]) for answer in answers] == kept["variants"]["int8"]["decisions"]
    right = np.mean([kept["classes"].index(a["label"]) == label for a, label in zip(answers, kept["labels"], strict=True)])
    assert right == first.metrics[f"evaluate@{tiny.TASK}"]["int8"]["score"]
    for answer in answers:
        assert answer["probability"] == max(answer["probabilities"].values()) == answer["probabilities"][answer["label"]]
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_a_text_has_one_answer_alone_and_among_32(server, split):
    texts = split["text"][:32]
    assert [server.answers(text)[0] for text in texts[:8]] == server.answers(*texts)[:8]


def test_no_torch_is_in_the_server(server):
    processes = [server.process, *server.process.children(recursive=True)]
    mapped = [region.path for process in processes for region in process.memory_maps()]
    assert any("onnxruntime" in path for path in mapped)
    assert not [path for path in mapped if "/torch/" in path]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"dataframe_records": [{"body": "rain"}]}, "Model is missing inputs ['text']"),
        ({"dataframe_records": [{"text": None}]}, "expected a text in row 0, found NoneType"),
        ({"dataframe_records": [{"text": "rain"}, {"text": " "}]}, "expected a text in row 1, found an empty one"),
        ({"dataframe_records": [{"text": 3}]}, "expected a text in row 0, found int"),
        ({"dataframe_records": []}, "Model is missing inputs ['text']"),
        ({"dataframe_records": [{"text": "rain " * 200_000}]}, "expected at most 100000 characters in row 0, found 1000000"),
        ({"text": "rain"}, "exactly one of the input fields"),
        ({}, "exactly one of the input fields"),
        (["rain"], "Received a list"),
    ],
    ids=["column", "null", "empty", "number", "no rows", "1 MB", "no field", "nothing", "list"],
)
def test_a_bad_request_is_a_400_with_a_sentence(server, body, sentence):
    found = server.post(body)
    assert found.status_code == 400
    assert sentence in found.json()["message"]
    assert "Traceback" not in found.text
    assert len(found.text) < 2000


def test_what_is_no_json_is_a_400_and_another_type_a_415(server):
    json_type = {"Content-Type": "application/json"}
    assert server.post(None, json=None, content=b"\xff{", headers=json_type).status_code == 400
    assert server.post(None, json=None, content=b"rain", headers={"Content-Type": "text/plain"}).status_code == 415


def test_many_clients_get_every_answer_and_a_bad_one_harms_nobody(server, split):
    """32 clients, 96 requests: none is lost, each answer is its own text's, a bad request among them is refused."""
    texts = split["text"][:32]
    alone = dict(zip(texts, server.answers(*texts), strict=True))

    def ask(number: int) -> bool:
        if number % 8 == 0:
            return server.post({"dataframe_records": [{"text": ""}]}).status_code == 400
        text = texts[number % len(texts)]
        return server.answers(text) == [alone[text]]

    began = time.monotonic()
    with ThreadPoolExecutor(32) as clients:
        assert all(clients.map(ask, range(96)))
    assert time.monotonic() - began < 60


def test_a_notebook_gets_the_same_answers(store, server, split):
    mlflow.set_tracking_uri(store)
    model = mlflow.pyfunc.load_model(f"models:/{MODEL}/1")
    texts = split["text"][:5]
    table = model.predict(pandas.DataFrame({"text": texts}))
    assert table.to_dict("records") == server.answers(*texts)
    assert list(table.columns) == ["label", "probability", "probabilities"]


@pytest.mark.parametrize("number", range(len(blocks("python", "docs/serving.md"))))
def test_the_programs_of_the_page(store, first, monkeypatch, capsys, number):
    program = blocks("python", "docs/serving.md")[number]
    monkeypatch.chdir(first.folder)
    names: dict[str, Any] = {}
    exec(program.replace("sqlite:///mlflow.db", store).replace("r8", tiny.TASK), names)
    labels = [*names["table"]["label"]] if "table" in names else [capsys.readouterr().out.strip()]
    assert labels[0] in json.loads(first[f"answers/{tiny.TASK}.json"].read_text())["classes"]


def test_the_version_holds_text_in_text_out_and_nothing_pickled(store, first, tmp_path):
    version = MlflowClient(store).get_model_version(MODEL, "1")
    folder = Path(mlflow.artifacts.download_artifacts(version.source, tracking_uri=store, dst_path=str(tmp_path)))
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".bin", ".pt"))]
    assert {"served.py", "artifacts/int8.packed", "input_example.json", "code/pruneonce/serving/predictor.py"} <= names
    needs = {line.partition("==")[0] for line in (folder / "requirements.txt").read_text().split()}
    assert needs == {"mlflow", "numpy", "onnx", "onnx-ir", "onnxruntime", "pandas", "tokenizers"}
    assert unpacking.read(folder / "artifacts/int8.packed") == first[f"export/{tiny.TASK}/int8.onnx"].read_bytes()
    assert packaging.fetch(f"models:/{MODEL}/1").read_bytes() == (folder / "artifacts/int8.packed").read_bytes()


def test_a_model_that_is_not_there_or_says_nothing(store, int8_onnx, tmp_path):
    with pytest.raises(DataError, match=r"expected a model such as models:/pruneonce-r8@champion, found: .*nobody"):
        packaging.fetch("models:/nobody/1")
    with pytest.raises(PackError, match=r"expected a model that answers text, found that .* does not say what it is"):
        packaging.save(int8_onnx.path, tmp_path / "model")
