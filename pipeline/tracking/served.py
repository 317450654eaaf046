"""The model that MLflow serves: text in, answers out. MLflow keeps this file in every registered version and runs it.

Models from code: nothing is pickled. What is imported here comes with the version (its `code` folder) or from the package
index: no torch, no transformers.
"""

import os
from pathlib import Path
from typing import Any

import mlflow
import pandas
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

from pruneonce.errors import PruneOnceError

THREADS, EXECUTION = "PRUNEONCE_THREADS", "PRUNEONCE_EXECUTION"  # of a call; 0 for one a core. As `pruneonce.load` takes it.


def _threads(text: str) -> int:
    if not text.isdecimal() or len(text) > 3:
        raise MlflowException(f"expected a number of threads in {THREADS}, or 0 for one a core, found {text!r}")
    return int(text)


class Served(PythonModel):
    """Rows of texts -> a table with one answer a row."""

    def load_context(self, context: Any) -> None:
        from pruneonce.serving.predictor import Predictor  # here: MLflow reads this file also to write it

        self.predictor = Predictor(
            Path(context.artifacts["model"]),
            threads=_threads(os.environ.get(THREADS, "0")),
            execution=os.environ.get(EXECUTION, "auto"),
        )

    def predict(self, context: Any, model_input: pandas.DataFrame, params: Any = None) -> pandas.DataFrame:
        """model_input: the columns of the signature. A wrong row is a 400 with one sentence."""
        try:
            answers = self.predictor([*model_input.itertuples(index=False, name=None)])
        except PruneOnceError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from None
        return pandas.DataFrame(answers)


mlflow.models.set_model(Served())
