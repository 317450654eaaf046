"""The tiny pipeline, run once a session, and copies of the repository for what must not touch it."""

import contextlib
import hashlib
import importlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from ruamel.yaml import YAML

from pipeline import stage
from tests import warm
from tests.conftest import copy_project, copy_store, made_once
from tests.integration import tiny


@pytest.fixture(scope="session")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[tiny.Result, tiny.Result]]:
    """The whole tiny pipeline in a process and, meanwhile, in another one with another hash seed and another path.

    All workers of pytest share it: a test that changes a file of it fails the last test of its worker.
    """
    folder = made_once("twice", run_twice, tmp_path_factory)
    results: tuple[tiny.Result, tiny.Result] = pickle.loads((folder / "results").read_bytes())
    before = [digests(result) for result in results]
    yield results
    assert [digests(result) for result in results] == before, "a test has written into what all tests share"


def run_twice(folder: Path) -> None:
    """Leave both in `folder`, and what their stages returned in the file `results`."""
    import torch

    threads = torch.get_num_threads()
    here, there = folder / "here", folder / "another-path"
    here.mkdir()
    there.mkdir()
    log = (there / "log").open("w")
    env = {**os.environ, "PYTHONHASHSEED": "4711", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.integration.tiny", str(there)]
    with log, subprocess.Popen(command, cwd=tiny.ROOT, env=env, stdout=log, stderr=log) as other:
        try:
            first = tiny.run_all(here)
            assert other.wait(timeout=300) == 0, (there / "log").read_text()[-3000:]
        finally:
            other.kill()
            torch.set_num_threads(threads)
    second = tiny.Result(there, json.loads((there / "metrics.json").read_text()))
    (folder / "results").write_bytes(pickle.dumps((first, second)))


def digests(result: tiny.Result) -> dict[str, str]:
    """path -> sha256 of every file below data/."""
    files = sorted(p for p in (result.folder / "data").rglob("*") if p.is_file())
    return {p.relative_to(result.folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="session")
def first(twice) -> tiny.Result:
    return twice[0]


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> str:
    """One store for all tests of a worker."""
    return copy_store(empty_store, tmp_path_factory.mktemp("mlflow"))


@dataclass
class Project:
    """A copy of the tracked files in a git repository of its own, with the tiny profile as params.yaml."""

    folder: Path
    environment: dict[str, str]

    def edit(self, change: Callable[[dict[str, Any]], None] = lambda document: None) -> None:
        """Write params.yaml: the tiny profile after `change`."""
        document, out = tiny.document(), StringIO()
        change(document)
        YAML().dump(document, out)
        (self.folder / "params.yaml").write_text(out.getvalue())

    def command(self, name: str) -> list[str]:
        """The command line of a stage, e.g. "finetune@topic", as dvc.yaml has it."""
        (found,) = [c for c in tiny.commands(tiny.document()) if c.name == name]
        item = ["--item", found.item] if found.item else []
        paths = [word for key, path in found.flags.items() for word in (f"--{key.replace('_', '-')}", path)]
        return ["python", "-m", f"stages.{found.stage}", *item, *paths]

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder; `python` and `dvc` as tests/warm.py starts them."""
        env = {**self.environment, **environment}
        if words[0] in ("python", "dvc"):
            env["PATH"] = warm.first(env["PATH"])
        return subprocess.run(words, cwd=self.folder, env=env, capture_output=True, text=True, timeout=120)

    def main(self, name: str) -> subprocess.CompletedProcess[str]:
        """The same command in this process, in this folder: `stage.main` and all it calls."""
        words = self.command(name)
        run = importlib.import_module(words[2]).run
        uri = {"MLFLOW_TRACKING_URI": self.environment["MLFLOW_TRACKING_URI"]}
        handler = signal.getsignal(signal.SIGTERM)
        with contextlib.chdir(self.folder), mock.patch.object(sys, "argv", words[2:]), mock.patch.dict(os.environ, uri):
            try:
                stage.main(run)
            except SystemExit as exit:
                text = exit.code if isinstance(exit.code, str) else ""
                return subprocess.CompletedProcess(words, 1 if text else exit.code, "", f"{text}\n")
            finally:
                signal.signal(signal.SIGTERM, handler)
        return subprocess.CompletedProcess(words, 0, "", "")

    def snapshot(self) -> Mapping[str, bytes]:
        """Every file below data/."""
        files = sorted(p for p in (self.folder / "data").rglob("*") if p.is_file())
        return {p.relative_to(self.folder).as_posix(): p.read_bytes() for p in files}


def new_project(folder: Path, tracking_uri: str) -> Project:
    """A project in a folder that is new."""
    copy_project(folder)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PRUNEONCE_", "PIP_", "PYTHONPATH"))}
    made = Project(folder, {**inherited, "MLFLOW_TRACKING_URI": tracking_uri})
    made.edit()
    return made


@pytest.fixture
def project(tmp_path: Path, tracking_uri: str) -> Project:
    return new_project(tmp_path / "project", tracking_uri)


@pytest.fixture
def computed(project: Project, first: tiny.Result) -> Project:
    """A project in which every stage has run."""
    shutil.copytree(first.folder / "data", project.folder / "data")
    return project
