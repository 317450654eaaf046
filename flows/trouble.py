"""What DVC and Prefect raise, as one line that says what to do."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from pathlib import Path

from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.lock import LockError
from dvc.rwlock import RWLockFileCorruptedError, RWLockFileFormatError
from dvc_objects.errors import ObjectFormatError
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings
from scmrepo.exceptions import SCMError

from pipeline import lineage
from pruneonce.errors import AlreadyRunning, PipelineError, PruneOnceError

ANSWER_SECONDS = 5.0  # within which a server of Prefect's says that it is there
FILES = ("params.yaml", *(str(name) for lock in lineage.LOCKS for name in (lock.with_suffix(".yaml"), lock)))


class StageFailed(PruneOnceError):
    """A stage's command failed; what it said stands above."""


@contextmanager
def plainly(wanted: str) -> Iterator[None]:
    """What DVC, git or the file system raise inside, as AlreadyRunning or PipelineError. wanted: what was to be done."""
    try:
        yield
    except LockError as error:
        raise busy(error) from None
    except (DvcException, SCMError, ObjectFormatError, OSError, sqlite3.Error) as error:
        raise PipelineError(f"expected {wanted}, found: {said(error)}. {_remedy(error)}, and run again.") from None


def busy(error: LockError) -> AlreadyRunning:
    return AlreadyRunning(f"expected no command of DVC at work in this folder, found: {said(error)}")


def said(error: BaseException) -> str:
    """Its message and those of what caused it: DVC's own is often `validation failed`, and no more."""
    found: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        found += [text for text in [str(cause).strip().rstrip(".")] if not any(text in other for other in found)]
        cause = cause.__cause__
    return ": ".join(found) or type(error).__name__


def full(error: BaseException | None) -> bool:
    """Whether the disk was full, or the quota spent."""
    return isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT)


def _remedy(error: BaseException) -> str:
    if full(error):
        return "Free some space"
    if conflicts := [name for name in FILES if _conflict(Path(name))]:
        names = " ".join(conflicts)
        return f"A merge conflict stands in {names}: take a side of it, e.g. git checkout --ours -- {names}"
    if isinstance(error, RWLockFileCorruptedError | RWLockFileFormatError):
        return "It holds nothing but who is at work: rm .dvc/tmp/rwlock, once no command of DVC is"
    if isinstance(error, NotDvcRepoError):
        return "Run inside the repository; what git has of it comes back with git checkout -- .dvc"
    return "Mend that; git diff shows what was changed here, git checkout -- FILE brings a file back"


def _conflict(path: Path) -> bool:
    return path.is_file() and re.search(rb"^<<<<<<< ", path.read_bytes(), re.MULTILINE) is not None


def check_prefect() -> None:
    """Raises PipelineError if the server of PREFECT_API_URL does not answer, or Prefect's home cannot be: it would try for
    minutes, and tell by a traceback."""
    settings = get_current_settings()
    if settings.api.url is None:
        with plainly(f"the folder PREFECT_HOME={settings.home}"):
            settings.home.mkdir(parents=True, exist_ok=True)
        return
    try:
        once = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})
        with once, get_client(httpx_settings={"timeout": ANSWER_SECONDS}, sync_client=True) as client:
            error = client.api_healthcheck()
    except Exception as raised:
        error = raised
    if error is not None:
        raise unreachable(error)


def unreachable(error: BaseException) -> PipelineError:
    url = get_current_settings().api.url
    place, other = (
        (url, "Start it, or unset PREFECT_API_URL for one") if url else ("this machine", "Run again for another one")
    )
    return PipelineError(
        f"expected a Prefect server at {place}, found: {type(error).__name__}: {error}. {other} that lives as long as the "
        "run. Finished stages are kept."
    )
