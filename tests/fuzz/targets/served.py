"""Requests to a served model: bodies of every type that MLflow reads, and the rows that it hands over. No server runs.

What MLflow itself says to a body is its own. Of ours nothing but its exception for a bad request may come.
"""

import io
import json
import os
import warnings
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow.exceptions import MlflowException
from mlflow.models.utils import _enforce_schema
from mlflow.pyfunc import scoring_server
from mlflow.types.schema import ColSpec, DataType, Schema

from tests.fuzz import answering, damage
from tests.fuzz.case import Files
from tests.fuzz.targets.predicting import TEXTS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow's, on type hints of its own
    from pipeline.tracking.served import EXECUTION, THREADS, Served

OUTS: tuple[str, ...] = ()
SECONDS = 20.0
SHARE = 12

TYPES = (
    *("application/json",) * 8,
    *("text/csv",) * 3,
    *("application/x-parquet", "application/json; charset=utf-8", "application/json; charset=latin-1", "text/plain", ""),
)
FORMS = ("dataframe_split", "dataframe_records", "inputs", "instances", "messages", "prompt", "input")
SETTINGS = ("0", "1", "1", "1", "-1", "x", "9999", "1.5", "", "٣")
_files: dict[str, bytes] = {}


def start() -> None:
    for kind in answering.KINDS:
        _files[kind] = answering.packed(answering.file(kind))
    _files["pair"] = answering.packed(answering.file("classification", pair="pair"))


def make(draw: Random) -> Files:
    kind, mime = draw.choice(sorted(_files)), draw.choice(TYPES)
    columns = _columns(kind)
    rows = [{name: draw.choice(TEXTS) for name in columns} for _ in range(draw.choice((0, 1, 1, 3)))]
    if mime.startswith("application/json"):
        body = _json(rows, columns, draw)
    elif mime == "application/x-parquet":
        body = _parquet(rows, columns, draw)
    else:
        lines = [",".join(columns), *(",".join(row.values()) for row in rows)]
        body = damage.text("\n".join(lines), draw)
    said = {
        "kind": kind,
        "type": mime,
        "threads": draw.choice(SETTINGS),
        "execution": "stock",
        "schema": draw.random() < 0.7,
    }
    if draw.random() < 0.05:
        said["execution"] = draw.choice(("auto", "sparse", "", "no such"))
    return {"body": body, "request.json": json.dumps(said).encode()}


def _columns(kind: str) -> tuple[str, ...]:
    return ("question", "context") if kind == "question_answering" else ("text", "pair") if kind == "pair" else ("text",)


def _json(rows: list[dict[str, Any]], columns: tuple[str, ...], draw: Random) -> bytes:
    form = draw.choice(FORMS)
    held: Any = rows
    if form == "dataframe_split":
        held = {"columns": list(columns), "data": [list(row.values()) for row in rows]}
    elif form in ("inputs", "input", "prompt") and draw.random() < 0.5:
        held = {name: [row[name] for row in rows] for name in columns}
    document: Any = {form: held}
    if draw.random() < 0.7:
        document = damage.document(document, draw)
    body = damage.dumped(document)
    return damage.data(body, draw) if draw.random() < 0.15 else body


def _parquet(rows: list[dict[str, Any]], columns: tuple[str, ...], draw: Random) -> bytes:
    cells = [[row[name].encode("utf-8", "replace").decode() for row in rows] for name in columns]
    other = draw.choice((cells[0], [1] * len(rows), [None] * len(rows), [b"\xff"] * len(rows), [["a"]] * len(rows)))
    sink = io.BytesIO()
    pq.write_table(pa.table(dict(zip(columns, [other, *cells[1:]], strict=True))), sink)
    return damage.data(sink.getvalue(), draw) if draw.random() < 0.5 else sink.getvalue()


class Ours(Exception):
    """Anything but an MlflowException came out of the served model."""


def run(folder: Path) -> None:
    request = json.loads(Path("request.json").read_text())
    Path("int8.packed").write_bytes(_files[request["kind"]])
    model = Served()
    os.environ[THREADS], os.environ[EXECUTION] = request["threads"], request["execution"]
    try:
        model.load_context(SimpleNamespace(artifacts={"model": "int8.packed"}))
    except MlflowException:  # a number of threads that is none
        return
    finally:
        del os.environ[THREADS], os.environ[EXECUTION]
    schema = Schema([ColSpec(DataType.string, name) for name in _columns(request["kind"])])

    def predict(data: Any, params: Any = None) -> pd.DataFrame:
        rows = _enforce_schema(data, schema, None) if request["schema"] else data
        return _predict(model, rows)

    told = SimpleNamespace(predict=predict, metadata=SimpleNamespace(get_params_schema=lambda: None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            answer = scoring_server.invocations(Path("body").read_bytes(), request["type"], told, schema)
        except Exception as error:
            if found := _ours(error):
                raise found from None
            return
    if answer.status == 200:
        json.loads(answer.response, parse_constant=_no_constant)


def _predict(model: Served, rows: Any) -> pd.DataFrame:
    if not isinstance(rows, pd.DataFrame):
        return pd.DataFrame()  # MLflow hands over nothing else where there is a signature
    try:
        found = model.predict(None, rows)
    except MlflowException as error:
        if error.get_http_status_code() != 400 or "\n" in error.message:
            _raised.append(AssertionError(f"status {error.get_http_status_code()}, or several lines"))
        raise
    except Exception as error:
        _raised.append(error)
        raise
    assert len(found) == len(rows)
    return found


_raised: list[Exception] = []


def _ours(error: Exception) -> Exception | None:
    """What the served model raised that is no answer to a bad request; MLflow wraps it."""
    if _raised:
        return _raised.pop()
    return error if isinstance(error, AssertionError) else None


def _no_constant(name: str) -> float:
    raise AssertionError(f"an answer with {name}, which is no JSON")
