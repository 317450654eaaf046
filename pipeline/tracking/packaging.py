"""An exported file as an MLflow model that takes text and returns answers: packed, with signature, example and code.

Serving it needs mlflow, numpy, onnx, onnx-ir, onnxruntime and tokenizers.
"""

import logging
import shutil
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas
from mlflow import artifacts, pyfunc
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, Map, Schema

import pruneonce
from pipeline.tracking.address import message, mlflow_uri
from pipeline.tracking.store import store
from pruneonce.deployment import packing
from pruneonce.deployment.about import about
from pruneonce.errors import DataError, PackError
from pruneonce.projects import SHIPPED
from pruneonce.serving.predictor import input_names

PACKED = "int8.packed"
REQUIREMENTS = ("mlflow", "numpy", "onnx", "onnx-ir", "onnxruntime", "pandas", "tokenizers")
SHARES = Map(DataType.double)
OUTPUTS: dict[str, dict[str, Any]] = {
    "classification": {"label": DataType.string, "probability": DataType.double, "probabilities": SHARES},
    "multi_label": {"labels": Array(DataType.string), "probabilities": SHARES},
    "regression": {"number": DataType.double},
    "embedding": {"embedding": Array(DataType.double)},
    "token_classification": {
        "words": Array(DataType.string),
        "tags": Array(DataType.string),
        "probabilities": Array(DataType.double),
    },
    "question_answering": {
        "answer": DataType.string,
        "begin": DataType.long,
        "end": DataType.long,
        "score": DataType.double,
    },
}
EXAMPLES = ("The tickets are cheap and the seats are good.", "Are the seats good?")


def save(file: Path, folder: Path) -> None:
    """Write the MLflow model of an exported file into `folder`, which must be new. Raises PackError for another file."""
    said = about(file)
    if not said:
        raise PackError(f"expected a model that answers text, found that {file} does not say what it is. Export it again.")
    work = folder.with_name(f"{folder.name}.work")
    packed, code = work / PACKED, work / "code"
    code.mkdir(parents=True)
    packing.pack(file, packed)
    # The library as it is now, so that a later one cannot change what this version answers; without the project's code.
    shutil.copytree(
        Path(pruneonce.__file__).parent, code / "pruneonce", ignore=shutil.ignore_patterns("__pycache__", SHIPPED.name)
    )
    columns = input_names(said)
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # it says that it tries the example
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's, on type hints of its own
        pyfunc.save_model(
            folder,
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={"model": str(packed)},
            code_paths=[str(code / "pruneonce")],
            signature=ModelSignature(
                _schema(dict.fromkeys(columns, DataType.string)), _schema(OUTPUTS[said["kind"]["kind"]])
            ),
            input_example=pandas.DataFrame([dict(zip(columns, reversed(EXAMPLES[: len(columns)]), strict=True))]),
            pip_requirements=[f"{package}=={metadata.version(package)}" for package in REQUIREMENTS],
            metadata={"pruneonce": {key: said[key] for key in ("task", "variant", "sparsity", "pattern", "bits", "score")}},
        )
    shutil.rmtree(work)


def _schema(columns: dict[str, Any]) -> Schema:
    return Schema([ColSpec(type_, name) for name, type_ in columns.items()])


def fetch(reference: str) -> Path:
    """The packed file of a registered model, such as models:/pruneonce-r8@champion, copied here. Raises DataError.

    The copy lies in a temporary folder that stays until it is cleaned up by the system.
    """
    with store():
        try:
            folder = artifacts.download_artifacts(reference, tracking_uri=mlflow_uri())
        except MlflowException as error:
            raise DataError(
                f"expected a model such as models:/pruneonce-r8@champion, found: {message(error)}. "
                "`pruneonce register` registers the models of dvc.lock, `pruneonce promote` makes one the champion."
            ) from None
    found = next(Path(folder).rglob(PACKED), None)
    if found is None:
        raise DataError(f"expected {PACKED} in {reference}, found none. `pruneonce register` did not write it.")
    return found
