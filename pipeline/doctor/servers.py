"""MLflow's store and Prefect's server: whether they answer, and whether the database has the schema of this MLflow."""

import os
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.doctor.dvc import no_address, refused
from pipeline.tracking import address, database
from pruneonce.doctor.findings import NOTE, OK, PROBLEM, Finding
from pruneonce.errors import TrackerUnreachable, plain

PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
PREFECT_PORT = 4200  # of `prefect server start`


def tracking() -> Iterator[Finding]:
    """MLflow's store."""
    file = address.sqlite_file(address.uri())
    if file is None:
        yield _server("mlflow", address.uri(), "Start it, or unset MLFLOW_TRACKING_URI to use a local file.")
        return
    try:
        yield Finding("mlflow", OK, _database(file))
    except TrackerUnreachable as error:
        yield Finding("mlflow", PROBLEM, str(error))


def _database(file: Path) -> str:
    """What is in a sqlite file of MLflow's. Raises TrackerUnreachable, with what to do, if this MLflow cannot use it."""
    if not database.tables(file):
        return f"{file}: none yet, the first run makes it"
    revisions, head = schemas()
    database.check(file, head, lambda version: version in revisions)
    with database.opened(file) as base:
        (runs,) = base.execute("SELECT count(*) FROM runs").fetchone()
        (going,) = base.execute("SELECT count(*) FROM runs WHERE status = 'RUNNING'").fetchone()
    return f"{file}: {runs} runs, {going} of them open; it has the schema of this MLflow"


def schemas() -> tuple[set[str], str]:
    """(every schema that the installed MLflow knows, the one that it writes), from its files: its import takes seconds."""
    files = [file for file in metadata.files("mlflow") or () if "db_migrations/versions" in str(file)]
    texts = [Path(str(file.locate())).read_text(encoding="utf-8") for file in files if file.suffix == ".py"]
    found = {key: {m for text in texts for m in re.findall(rf'^{key} = "(\w+)"', text, re.MULTILINE)} for key in KEYS}
    (head,) = found["revision"] - found["down_revision"]
    return found["revision"], head


KEYS = ("revision", "down_revision")


def prefect() -> Iterator[Finding]:
    """Prefect's server: the one that is set, else whether a run would start its own."""
    if url := _prefect_address():
        yield _server("prefect", url, "Start it: prefect server start. Or unset PREFECT_API_URL.")
        return
    if refused("127.0.0.1", PREFECT_PORT):
        yield Finding("prefect", OK, "no server is set: every run starts its own, and ends it")
    else:
        said = f"something listens on port {PREFECT_PORT}, but a run would start a server of its own"
        advice = f"If it is Prefect's: export PREFECT_API_URL=http://127.0.0.1:{PREFECT_PORT}/api"
        yield Finding("prefect", NOTE, said, advice)


def _prefect_address() -> str | None:
    """The address that Prefect reads: the variable, else that of the active profile."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    file = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect") / "profiles.toml"
    if not file.is_file():
        return None
    said = tomllib.loads(file.read_text(encoding="utf-8"))
    active = os.environ.get("PREFECT_PROFILE") or said.get("active", "")
    return said.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")


def _server(name: str, url: str, advice: str) -> Finding:
    """Whether something listens at an address. Its password is not shown."""
    shown = plain(url)
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS.get(parts.scheme.partition("+")[0])
    except ValueError:
        return no_address(name, shown)
    if not parts.hostname or port is None:
        return Finding(name, NOTE, f"{shown}: not tried")
    if error := refused(parts.hostname, port):
        return Finding(name, PROBLEM, f"{shown} does not answer: {error}", advice)
    return Finding(name, OK, f"{shown} answers")
