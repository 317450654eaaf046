"""What an MLflow server answers, damaged, to trace, verify and why. No server runs: its answers come from the case."""

import json
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import requests
from mlflow.utils import rest_utils

from pipeline.tracking import asked, store  # noqa: F401, here and not in a case: they take seconds
from tests.fuzz import damage
from tests.fuzz.case import Files
from tests.fuzz.targets import pipelines
from tests.fuzz.targets.pipelines import MD5

OUTS: tuple[str, ...] = ()
SECONDS = 30.0
SHARE = 14

RUN = "0123456789abcdef0123456789abcdef"
OUT = "data/onnx/topic-1/int8.onnx"
INFO = {
    **{"run_id": RUN, "run_uuid": RUN, "run_name": "export@topic-1", "experiment_id": "1", "status": "FINISHED"},
    **{"start_time": 1700000000000, "end_time": 1700000005000, "lifecycle_stage": "active", "artifact_uri": "mlruns/1"},
}
TAGS = {
    "pruneonce.stage": "export@topic-1",
    "pruneonce.outs": json.dumps({OUT: MD5[OUT]}),
    "pruneonce.deps": json.dumps({"data/model": MD5["data/model"]}),
    "pruneonce.code": json.dumps({"stages/fetch.py": MD5["stages/fetch.py"]}),
    "pruneonce.dirty": "false",
    "mlflow.source.git.commit": "0" * 40,
}
METRICS = [
    {"key": f"result.{name}", "value": 0.5, "timestamp": 1, "step": 0} for name in ("seconds", "int8.score", "sparsity")
]
ENTRY = {"info": INFO, "data": {"tags": [{"key": k, "value": v} for k, v in TAGS.items()], "metrics": METRICS, "params": []}}
VERSION = {
    **{"name": "pruneonce-topic", "version": "1", "run_id": RUN, "source": f"runs:/{RUN}/int8", "status": "READY"},
    **{"creation_timestamp": 1700000000000, "last_updated_timestamp": 1700000000000, "aliases": ["champion"]},
    "tags": [{"key": "md5", "value": MD5[OUT]}, {"key": "path", "value": OUT}, {"key": "git_commit", "value": "0" * 40}],
}
MODEL = {"name": "pruneonce-topic", "aliases": [{"alias": "champion", "version": "1"}], "latest_versions": [VERSION]}
ANSWERS: dict[str, Any] = {  # the end of an address -> what is answered
    "experiments/get-by-name": {"experiment": {"experiment_id": "1", "name": "pruneonce", "lifecycle_stage": "active"}},
    "runs/search": {"runs": [ENTRY]},
    "runs/get": {"run": ENTRY},
    "model-versions/search": {"model_versions": [VERSION]},
    "model-versions/get": {"model_version": VERSION},
    "registered-models/get": {"registered_model": MODEL},
    "registered-models/alias": {"model_version": VERSION},
    "registered-models/search": {"registered_models": [MODEL]},
}
ERRORS = (
    *(b"", b"{", b"null", b"[]", b"<html>502</html>", b"\xff", b'{"error_code": 3}', b'{"message": "a\\nb"}'),
    *(b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}', b'{"error_code": "NO SUCH", "message": {}}'),
)
STATUS = (200, 200, 200, 400, 401, 403, 404, 429, 500, 502, 503)
WORDS = (
    *(["trace", OUT], ["trace", "copy.onnx"], ["trace", "models:/pruneonce-topic/1"], ["trace", RUN], ["trace", RUN[:8]]),
    *(["trace", "models:/pruneonce-topic@champion", "--full"], ["trace", OUT, "--json"], ["trace", OUT, "--mermaid"]),
    *(["trace", "data/model", "--forward"], ["trace", MD5[OUT][:9]], ["verify", OUT], ["verify", RUN], ["why"]),
    *(["why", "prune"], ["why", "--json"], ["verify", "models:/pruneonce-topic/1"], ["trace", "models:/a/1"]),
)


def make(draw: Random) -> Files:
    answers, status = {}, {}
    for name in draw.sample(list(ANSWERS), draw.choice((1, 2, 3))):
        kind = draw.randrange(5)
        if kind == 4:
            answers[name], status[name] = draw.choice(ERRORS).decode("latin-1"), draw.choice(STATUS)
        elif kind == 3 and name.startswith("runs/"):  # a tag, which holds JSON
            whole = json.loads(json.dumps(ANSWERS[name]))
            run = whole["run"] if "run" in whole else whole["runs"][0]
            draw.choice(run["data"]["tags"][:4])["value"] = damage.dumped(damage.document({OUT: MD5[OUT]}, draw)).decode()
            answers[name] = damage.dumped(whole).decode()
        else:
            answers[name] = damage.dumped(damage.document(ANSWERS[name], draw)).decode()
    files: Files = {"answers.json": json.dumps([answers, status]).encode(), "argv.json": b""}
    if draw.random() < 0.3:  # a lock file that knows of nothing: then MLflow is asked
        files["dvc.lock"] = b"stages: {}\n"
    return {**files, "argv.json": json.dumps(draw.choice(WORDS)).encode()}


def run(folder: Path) -> None:
    pipelines.lay(folder)
    answers, status = json.loads(Path("answers.json").read_text())

    def answered(host: Any, endpoint: str, method: str, *args: Any, **kwargs: Any) -> requests.Response:
        name = next((name for name in ANSWERS if endpoint.endswith(name)), "")
        found = requests.Response()
        found.status_code = status.get(name, 200 if name else 404)
        found._content = (
            answers[name].encode("utf-8", "replace") if name in answers else json.dumps(ANSWERS.get(name, {})).encode()
        )
        return found

    settings = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    with mock.patch.object(rest_utils, "http_request", answered), mock.patch.dict("os.environ", settings):
        pipelines.called(json.loads(Path("argv.json").read_text()))
