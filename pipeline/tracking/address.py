"""Where MLflow's runs are kept, and how to name that place without its password.

The address is MLFLOW_TRACKING_URI, by default a sqlite file beside params.yaml.
"""

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from pruneonce.errors import plain

EXPERIMENTS = Path(".dvc/tmp/exps")  # `dvc exp run --temp` and `--queue` make their copies here, and remove them


def home() -> Path:
    """The project of this folder: for a copy that `dvc exp run` made, the project that it was copied from."""
    here = Path.cwd()
    return next((folder for folder in here.parents if folder / EXPERIMENTS in here.parents), here)


def uri() -> str:
    """Where runs are kept. May hold a password: show `shown()`."""
    address = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    file = sqlite_file(address)
    if file is None or file.is_absolute() or home() == Path.cwd():
        return address
    return make_url(address).set(database=str(home() / file)).render_as_string()


def shown() -> str:
    """Where runs are kept, without a password."""
    address = uri()
    return plain(address if "://" in address else address.rpartition("@")[2])


def everywhere() -> str:
    """`shown`, for any folder of this machine: a sqlite file by its whole path. Two projects' own files are two stores."""
    file = sqlite_file(uri())
    return f"sqlite:///{file.absolute()}" if file else shown()


def message(error: object) -> str:
    """The message of an error in one line, without its SQL and without a password of the address."""
    text = str(error).partition("[SQL:")[0].replace(uri(), shown())
    for part in sorted(_secrets(uri()), key=len, reverse=True):
        text = text.replace(part, "***")
    return plain(text)[:300]


def _secrets(address: str) -> set[str]:
    """The password of an address, or the token that stands alone before its host, in every form that an error may repeat."""
    scheme, _, rest = address.rpartition("://") if "://" in address else ("x", "", address)
    login, at, _ = rest.rpartition("@")
    if not at or plain(f"{scheme}://{login}@") != f"{scheme}://":  # an `@` in a path
        return set()
    user, _, password = login.partition(":")
    secret = password or user
    return {part for part in (secret, unquote(secret), *re.split(r"[/:?#@]", secret)) if len(part) > 2}


def sqlite_file(address: str) -> Path | None:
    """The sqlite file of an address; None for a server, for memory, and for sqlite's own `file:` addresses."""
    if not address.startswith("sqlite"):
        return None
    try:
        path = make_url(address).database
    except ArgumentError:  # MLflow says what is wrong with it
        return None
    return Path(path) if path and path != ":memory:" and not path.startswith("file:") else None


def mlflow_uri() -> str:
    """The address for MLflow, which prints it: user and password of an http address go into MLflow's own variables."""
    address = urlsplit(uri())
    if address.scheme not in ("http", "https") or "@" not in address.netloc:
        return uri()
    user, _, password = address.netloc.rpartition("@")[0].partition(":")
    for name, part in (("USERNAME", user), ("PASSWORD", password)):
        if part:  # what is not in the address may be set already
            os.environ[f"MLFLOW_TRACKING_{name}"] = unquote(part)
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()
