"""The ground that faults fall on: a project of the tiny profile, computed without a fault, and copies of it."""

import contextlib
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from tests import warm

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("FAULTS_FOLDER") or ROOT / ".pruneonce/faults")  # two suites at once need one each
TINY = ROOT / "profiles/tiny.yaml"
KERNELS = "pruneonce/deployment/kernels.so"  # built, and not in git
TRAINED = ("prepare_teacher", "sparsify", "teach_task@topic", "finetune@topic", "quantize@topic")
PATIENCE_SECONDS = 900.0  # for a command, on a machine that has other work


def parameters() -> dict[str, Any]:
    """The tiny profile with trainings that last some seconds, and a checkpoint after every step."""
    tiny = YAML(typ="safe").load(TINY)
    tiny["common"]["threads"] = 1
    tiny["prepare_teacher"] |= {"steps": 120}
    tiny["sparsify"] |= {"steps": 90}
    for stage, epochs in (("teach_task", 6), ("finetune", 6), ("quantize", 5)):
        tiny[stage]["epochs"] = epochs
    tiny["machine"] |= {"checkpoint_seconds": 0}
    return tiny


@dataclass
class Copy:
    """A copy of the project, with runs of its own."""

    folder: Path
    ground: "Ground"
    environment: dict[str, str]
    base: Path  # of MLflow's runs
    since: int = field(default_factory=lambda: int(time.time() * 1000))  # older runs are not of this copy

    def set(self, section: str, **values: Any) -> None:
        """Change parameters."""
        file = self.folder / "params.yaml"
        document = YAML(typ="safe").load(file)
        document[section] |= values
        file.write_text(dumped(document))

    def forget(self, stage: str) -> None:
        """Leave nothing of the stage, so that it must be computed."""
        file = self.folder / "dvc.lock"
        document = YAML(typ="safe").load(file)
        entry = document["stages"].pop(stage)
        file.write_text(dumped(document))
        for out in entry["outs"]:
            path = self.folder / out["path"]
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        shutil.rmtree(self.folder / ".dvc/cache/runs", ignore_errors=True)

    def command(self, how: str, stage: str) -> list[str]:
        """The words that bring a stage up to date, by `dvc` or by the `flow`."""
        if how == "dvc":
            return ["dvc", "repro", "--single-item", stage]
        return ["python", "-m", "flows.compress"]

    def really(self) -> "Copy":
        """The same, in which programs start as they do for a person."""
        self.environment["PATH"] = self.environment["PATH"].partition(os.pathsep)[2]
        return self

    def words(self, *words: str) -> list[str]:
        """A command with the path of its program."""
        return [shutil.which(words[0], path=self.environment["PATH"]) or words[0], *words[1:]]

    def start(self, *words: str, log: str = "log", **environment: str) -> subprocess.Popen[bytes]:
        """Start a command; what it says goes to a file."""
        with (self.folder.parent / f"{self.folder.name}.{log}").open("ab") as out:
            return subprocess.Popen(
                self.words(*words),
                cwd=self.folder,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its output is in `stdout`."""
        return subprocess.run(
            self.words(*words),
            cwd=self.folder,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_SECONDS,
        )

    def said(self, log: str = "log") -> str:
        file = self.folder.parent / f"{self.folder.name}.{log}"
        return file.read_text(errors="replace") if file.exists() else ""

    def different(self, *stages: str) -> list[str]:
        """Lines for the outs of these stages that are not byte for byte those of the run without a fault."""
        found = []
        for stage in stages:
            for path in self.ground.outs(stage):
                here, there = contents(self.folder / path), contents(self.ground.project / path)
                if here != there:
                    names = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
                    found.append(f"{path} is not that of the run without a fault: {', '.join(names) or 'missing'}")
        return found

    def runs(self, stage: str) -> list[tuple[str, str]]:
        """(id, status) of the MLflow runs of a stage."""
        query = (
            "SELECT runs.run_uuid, runs.status FROM runs JOIN tags ON tags.run_uuid = runs.run_uuid "
            "WHERE tags.key = 'pruneonce.stage' AND tags.value = ? AND runs.start_time >= ? ORDER BY runs.start_time"
        )
        return list(rows(self.base, query, stage, self.since))

    def tracked_badly(self, stage: str) -> list[str]:
        """Lines for what MLflow has not, or has twice: it must have one run, finished, with each step once a metric."""
        found = self.runs(stage)
        if [status for _, status in found] != ["FINISHED"]:
            statuses = ", ".join(status for _, status in found)
            return [f"expected one finished run of {stage} in MLflow, found {len(found)}: {statuses or 'none'}"]
        there = Counter(rows(self.base, "SELECT key, step FROM metrics WHERE run_uuid = ?", found[0][0]))
        expected = self.ground.metrics(stage)
        doubled = sorted(entry for entry, times in there.items() if times > 1)
        lines = [f"MLflow has {len(doubled)} metrics of {stage} twice, such as {doubled[:2]}"] if doubled else []
        if set(there) != expected:
            lacking, more = sorted(expected - set(there)), sorted(set(there) - expected)
            lines.append(f"MLflow lacks {len(lacking)} metrics of {stage} {lacking[:2]}, has {len(more)} others {more[:2]}")
        return lines


class Ground:
    """The project without a fault, the programs that start fast, and the chance that cases draw from."""

    def __init__(self, seed: int, kills: int):
        self.chance, self.kills = random.Random(seed), kills
        self.project = FOLDER / "project"
        self.work = FOLDER / "work"
        self.started: list[psutil.Popen] = []
        self.port = free_port()  # of one Prefect server for all flows: a server of its own costs each of them 10 s

    def __enter__(self) -> "Ground":
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        try:
            self._start_servers()
            self._compute()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        end([process for one in self.started for process in (*one.children(recursive=True), one)])

    def environment(self, folder: Path) -> dict[str, str]:
        own = ("PREFECT_", "MLFLOW_", "DVC_", "PRUNEONCE_", "GIT_", "PYTHONPATH")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(own)}
        return {
            **kept,
            "PATH": warm.first(os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])),
            "PYTHONPATH": str(folder),
            "OMP_NUM_THREADS": "1",
            "PREFECT_HOME": str(FOLDER / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DVC_NO_ANALYTICS": "1",
            "HF_HUB_OFFLINE": "1",  # transformers writes it into tokenizer_config.json
            "NO_COLOR": "1",
            "COLUMNS": "150",
        }

    def _start_servers(self) -> None:
        (FOLDER / "prefect").mkdir(exist_ok=True)
        command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(self.port), "--no-services"]
        environment = self.environment(ROOT)
        with (FOLDER / "prefect.log").open("wb") as log:
            self.started.append(
                psutil.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
            )
        if not wait(lambda: answers(f"http://127.0.0.1:{self.port}/api/health"), every=0.5):
            sys.exit((FOLDER / "prefect.log").read_text()[-3000:])

    def _compute(self) -> None:
        """Bring the project up to date; what did not change since the last time is not computed again."""
        kept = {name: self.project / name for name in (".git", "data", "dvc.lock", ".dvc/cache", "mlflow.db", "mlruns")}
        aside = FOLDER / "aside"
        shutil.rmtree(aside, ignore_errors=True)
        for name, path in kept.items():
            if path.exists():
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                path.rename(aside / name)
        shutil.rmtree(self.project, ignore_errors=True)
        shutil.rmtree(aside / ".git", ignore_errors=True)
        copy_tracked(self.project)
        for name, path in kept.items():
            if (aside / name).exists():
                shutil.rmtree(path, ignore_errors=True)
                (aside / name).rename(path)
        with contextlib.suppress(FileNotFoundError):  # without the kernels the sparse form is not measured
            shutil.copy(ROOT / KERNELS, self.project / KERNELS)
        (self.project / "params.yaml").write_text(dumped(parameters()))
        done = self.reference().run("dvc", "repro")
        if done.returncode:
            sys.exit(f"expected a project without a fault, found: {done.stdout[-3000:]}")

    def reference(self) -> Copy:
        """The project itself, with all its runs."""
        return Copy(self.project, self, self.environment(self.project), self.project / "mlflow.db", since=0)

    def copy(self, name: str, *forgotten: str) -> Copy:
        """A copy of the project, with an empty MLflow store, in which these stages must be computed."""
        folder = self.work / name
        shutil.copytree(self.project, folder, symlinks=True, ignore=shutil.ignore_patterns("mlruns", "mlflow.db*"))
        shutil.copy(self.empty_store(), folder / "mlflow.db")
        made = Copy(folder, self, self.environment(folder), folder / "mlflow.db")
        for stage in forgotten:
            made.forget(stage)
        return made

    def empty_store(self) -> Path:
        """A database of MLflow's without runs: making one takes seconds."""
        base = FOLDER / "empty.db"
        if not base.exists():
            env = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{base}"}
            command = "from pipeline.tracking import store; store.connect()"
            subprocess.run([sys.executable, "-c", command], cwd=ROOT, env=env, check=True)
        return base

    def outs(self, stage: str) -> list[str]:
        return [out["path"] for out in YAML(typ="safe").load(self.project / "dvc.lock")["stages"][stage]["outs"]]

    def metrics(self, stage: str) -> set[tuple[str, int]]:
        """(name, step) of all that the run without a fault has in MLflow."""
        mine = self.reference().runs(stage)
        return set(rows(self.project / "mlflow.db", "SELECT key, step FROM metrics WHERE run_uuid = ?", mine[-1][0]))


def rows(base: Path, query: str, *words: object) -> Iterator[tuple]:
    with contextlib.closing(sqlite3.connect(base, timeout=60)) as opened:
        yield from opened.execute(query, words).fetchall()


def dumped(document: Mapping[str, Any]) -> str:
    text, yaml = StringIO(), YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.dump(document, text)
    return text.getvalue()


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of a file, or of each file of a folder, by name."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] if path.exists() else []
    return {file.relative_to(path.parent).as_posix(): file.read_bytes() for file in files}


def end(processes: list[psutil.Process]) -> None:
    """Kill these processes, and wait for their end."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=20)


def wait(ask: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS, every: float = 0.02) -> Any:
    """Ask until the answer is true; return it, or the last one when the time is over."""
    over = time.monotonic() + seconds
    while not (answer := ask()) and time.monotonic() < over:
        time.sleep(every)
    return answer


def copy_tracked(folder: Path) -> None:
    """The project as it stands, without anything that was computed, as a git repository of one commit.

    `tests.conftest` does the same, and takes seconds to import.
    """
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and name != "dvc.lock" and not name.startswith("data/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "copy"]):
        subprocess.run(["git", *words], cwd=folder, check=True)


def answers(address: str) -> bool:
    """Whether a server answers there."""
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
