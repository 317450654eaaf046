"""What a copy of the project sees: its own Prefect home, its own MLflow runs; processes that are ended for sure."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests import warm
from tests.conftest import wait_for

ALONE = {"PREFECT_PROFILE": "ephemeral"}  # Prefect's own


def secret(name: str) -> str:
    """A password that no file has, for these files are in the copies too."""
    return "-".join(("canary", name, "s3cr3t"))


CANARIES = {  # that a run may read, and neither shows nor keeps
    name: secret(name.lower())
    for name in (
        *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "GITHUB_TOKEN"),
        *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD"),
    )
} | {"PIP_EXTRA_INDEX_URL": f"http://me:{secret('pip')}@127.0.0.1:9/simple"}
ANY_SECRET = re.compile(r"canary-[\w-]+?-s3cr3t")


def kept_in(said: str, *folders: Path) -> list[str]:
    """The secrets that a text shows, and the files below the folders that hold one."""
    files = sorted(path for top in folders for path in top.rglob("*") if path.is_file() and not path.is_symlink())
    return [
        *ANY_SECRET.findall(said),
        *(str(path) for path in files if ANY_SECRET.search(path.read_bytes().decode("latin-1"))),
    ]


def environment(project: Path, home: Path, *, cold: bool = False) -> dict[str, str]:
    """What a process in the copy sees: this interpreter, the copy's code, Prefect in `home`, MLflow in the copy.

    cold: every program starts as it does for users. Else stages and flows start fast: see tests/warm.py.
    """
    own = ("PREFECT_", "MLFLOW_", "DVC_", "PRUNEONCE_", "GIT_", "MAKE")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    fast = [] if cold else [str(warm.programs())]
    return {
        **kept,
        "PATH": os.pathsep.join([*fast, str(Path(sys.executable).parent), kept["PATH"]]),
        "PYTHONPATH": os.pathsep.join([*fast, str(project), *filter(None, [kept.get("PYTHONPATH")])]),
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "NO_COLOR": "1",
    }


def prefect_home(copy: Path) -> Path:
    """Beside the copy. Its parent must be there: Prefect does not make it, and its server then never starts."""
    return copy.with_name(f"{copy.name}-prefect")


@pytest.fixture
def cold() -> Iterator[None]:
    """Every program starts as it does for users, those of a worker that waits already among them."""
    mark = warm.programs() / warm.COLD
    mark.touch()
    yield
    mark.unlink()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def started(command: str, *, cwd: Path, env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A shell command that stays: its output goes to `log`, and on leaving its whole process group is ended."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell's background jobs ignore Ctrl-C and hand that on; Prefect's worker stops by it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            yield process
            if "--host" not in command and process.poll() is None:
                assert open_to_others(process.pid) == []
        finally:
            if process.poll() is None:
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                process.terminate()
                _, alive = psutil.wait_procs(family, timeout=20)
                for child in alive:
                    child.kill()
                process.wait()


def open_to_others(pid: int) -> list[str]:
    """The addresses on which a process and its children listen, without those of this machine alone."""
    found: set[str] = set()
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            found |= {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    return sorted(found - {"127.0.0.1", "::1"})


def bash_blocks(page: Path) -> dict[str, list[str]]:
    """The ```bash blocks of a page by the heading above them."""
    sections = re.split(r"^##+ +(.*)$", page.read_text(), flags=re.MULTILINE)
    pairs = zip(sections[1::2], sections[2::2], strict=True)
    return {heading: re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE) for heading, text in pairs}


@contextmanager
def prefect_server(home: Path) -> Iterator[None]:
    """A Prefect server for every process whose PREFECT_HOME this is: none of them has to start one of its own.

    It says so in the profiles of that folder, as `prefect config set` does. With the variable of ALONE a process starts one.
    """
    port = free_port()
    profile = f'active = "server"\n\n[profiles.server]\nPREFECT_API_URL = "http://127.0.0.1:{port}/api"\n'
    (home / "profiles.toml").write_text(profile)
    command, log = f"{sys.executable} -m prefect server start --no-services --no-ui --port {port}", home / "server.log"
    env = environment(home, home, cold=True) | ALONE

    def answers() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/api/health").status_code == 200
        except httpx.HTTPError:
            return False

    with started(command, cwd=home, env=env, log=log):
        wait_for("Prefect's server", answers, seconds=180, every=0.3, log=log)
        yield
