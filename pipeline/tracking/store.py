"""The connection to MLflow's tracking store. A failure of MLflow is one TrackerUnreachable that says what to do."""

import logging
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# An unreachable server must be known in seconds: MLflow's own defaults retry for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # it draws one for a file of some KB
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # it logs every step of its database's migration

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as migrations
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from pipeline.tracking import database
from pipeline.tracking.address import home, message, mlflow_uri, shown, sqlite_file, uri
from pruneonce.errors import PruneOnceError, TrackerUnreachable

logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints a traceback of every error that it raises

EXPERIMENT = "pruneonce"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow's pages are those for chat agents
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE")  # e.g. the run was deleted
BATCH = 90  # entries a request: the server's limit is 100 params, 1000 metrics


@contextmanager
def one_error(also: str = "", *, connecting: bool = False) -> Iterator[None]:
    """What MLflow and the system raise is a TrackerUnreachable. Our own errors and faults of the code keep their type.

    also: words to end the message with. connecting: any other error is that of an address which cannot be.
    """
    try:
        yield
    except PruneOnceError as error:
        raise type(error)(f"{error}{also}") from None
    except Exception as error:
        if not (connecting or isinstance(error, OSError | MlflowException) or _in_mlflow(error)):
            raise
        advice = database.advice(str(error), sqlite_file(uri()) or Path("it"))
        if not advice and os.environ.get("MLFLOW_TRACKING_URI"):
            advice = "Start it, or unset MLFLOW_TRACKING_URI to use a local file."
        found = f"expected an MLflow tracking store at {shown()}, found: {message(error)}. {advice}".rstrip()
        raise TrackerUnreachable(f"{found}{also}") from None


def _in_mlflow(error: Exception) -> bool:
    """Whether it was raised in a call of MLflow: SQLAlchemy's errors, a driver's, those of a server that is not MLflow's."""
    modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(module.partition(".")[0] == "mlflow" for module in modules)


@one_error(connecting=True)
def connect() -> tuple[MlflowClient, str]:
    """A client and the id of our experiment. Raises TrackerUnreachable."""
    if file := sqlite_file(uri()):
        database.ensure(file, _migrate)
        database.check(file, migrations._get_latest_schema_revision(), _older)
    client = MlflowClient(tracking_uri=mlflow_uri())
    return client, _experiment(client)


@contextmanager
def store(also: str = "") -> Iterator[tuple[MlflowClient, str]]:
    """`connect` for some requests, under `one_error`."""
    with one_error(also):
        yield connect()


def _migrate(file: Path) -> None:
    """Write an empty database of MLflow's, with all that it holds in one file."""
    address = f"sqlite:///{file}"
    try:
        SqlAlchemyStore(address, _artifacts())
    finally:
        if engine := SqlAlchemyStore._engine_map.pop(address, None):  # kept for later, when this is another file
            engine.dispose()


def _older(version: str) -> bool:
    """Whether this MLflow knows the schema: then it is an older one."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(migrations._get_alembic_config(""))
    return version in {script.revision for script in scripts.walk_revisions()}


def _artifacts() -> str:
    """Where artifacts lie whose records are in a sqlite file: MLflow's own default, in the project itself."""
    return str(home() / "mlruns")


def _experiment(client: MlflowClient) -> str:
    """The id of our experiment, made if there is none yet. Raises TrackerUnreachable if it was deleted."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        place = _artifacts() + f"/{EXPERIMENT}" if uri().startswith("sqlite") else None
        try:
            return client.create_experiment(EXPERIMENT, artifact_location=place, tags=KIND)
        except MlflowException:
            found = client.get_experiment_by_name(EXPERIMENT)  # another worker made it in between
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise TrackerUnreachable(
            f"expected the experiment {EXPERIMENT} in MLflow at {shown()}, found that it was deleted. Bring it back, with "
            f"MLFLOW_TRACKING_URI set to that address: mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return found.experiment_id


def refused(error: Exception) -> bool:
    """Whether the server answered, and will give the same answer to the same request next time."""
    return isinstance(error, MlflowException) and error.error_code in REFUSALS


@contextmanager
def unless_refused() -> Iterator[None]:
    """End the block, without an error, where the server refuses a request."""
    try:
        yield
    except MlflowException as error:
        if not refused(error):
            raise


def in_batches(entries: Sequence[Any], send: Callable[[Sequence[Any]], object]) -> None:
    """Send entries by so many as one request may hold."""
    for start in range(0, len(entries), BATCH):
        send(entries[start : start + BATCH])
