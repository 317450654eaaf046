"""Command lines of `pruneonce`: words that are empty, long, strange; files that are folders, damaged, not there."""

import contextlib
import importlib
import io
import json
import os
import sys
from pathlib import Path
from random import Random
from unittest import mock

from pipeline import cli
from pipeline.lineage import trace
from pipeline.lineage.facts import Facts
from pipeline.tracking import champions, registry
from pruneonce import command, commandline, errors
from pruneonce.errors import PruneOnceError
from tests.fuzz import damage
from tests.fuzz.case import Files
from tests.fuzz.targets import locks, planning
from tests.fuzz.targets.onnx_file import WHOLE

OUTS: tuple[str, ...] = ()
SECONDS = 20.0
SHARE = 10

COMMANDS = (
    *("plan", "plan", "pack", "unpack", "inspect", "accelerate", "predict", "completion", "trace", "verify", "why"),
    *("run", "promote", "rollback", "register", "", "help", "--help", "--version"),
)
FLAGS = (
    *("--gpus", "--tflops", "--tokens-per-second", "--help", "--", "-x", "--gpus=1", "--threads", "--execution", "--text"),
    *("--alias", "--why", "--set", "--profile", "--json", "--full", "--file", "--dry-run"),
)
NUMBERS = (
    "1",
    "8",
    "0",
    "-1",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1e-400",
    "",
    "x",
    "9" * 5000,
    "1_0",
    "0x10",
    " 1",
    "1.5",
    "٣",
    "1e5",
)
PATHS = (
    "model.onnx",
    "model.packed",
    "folder",
    "folder/x",
    "nowhere",
    ".",
    "..",
    "/",
    "-",
    "",
    "pipe",
    "model.onnx/x",
    "tiny",
    "default",
    "x" * 300,
    "x" * 5000,
    *damage.WORDS,
)


def start() -> None:
    """What the commands import when they are called takes seconds, in each process anew."""
    for name in ("pruneonce.deployment.overview", "pruneonce.serving.predictor", "pipeline.tracking.packaging"):
        importlib.import_module(name)


def make(draw: Random) -> Files:
    words = [draw.choice(COMMANDS)]
    for _ in range(draw.randint(0, 3)):
        flag = draw.random() < (0.6 if words[0] == "plan" else 0.3)
        words += [draw.choice(FLAGS), draw.choice((*NUMBERS, *PATHS))] if flag else [draw.choice(PATHS)]
    return {"argv.json": json.dumps(words).encode()}


def run(folder: Path) -> None:
    planning.run(folder)
    locks.lay(folder)
    Path("model.onnx").write_bytes(WHOLE)
    Path("model.packed").write_bytes(b"none")
    Path("folder").mkdir()
    os.mkfifo("pipe")
    said, words = io.StringIO(), json.loads(Path("argv.json").read_text())
    main = command.main if words[0] in commandline.LIBRARY else cli.main
    # What a shell hands over that is no UTF-8 arrives as half of a surrogate pair, as here.
    with (
        mock.patch.object(registry, "update", return_value=[]),  # a store of MLflow's takes seconds to make
        mock.patch.object(trace, "gather", return_value=Facts()),
        mock.patch.object(champions, "rollback", return_value="done"),
        mock.patch.object(os, "execv", _become),
        mock.patch.object(sys, "argv", ["pruneonce", *words]),
        contextlib.redirect_stderr(said),
    ):
        try:
            main()
        except SystemExit as ended:
            judge(ended, said.getvalue())


def _become(program: str, words: list[str]) -> None:
    """In place of another program: the words are such as a program can have."""
    assert all(isinstance(word, str) for word in words)
    sys.exit(0)


def judge(ended: SystemExit, said: str) -> None:
    """Exit code 0 after help; 2 after a word on how it is used; else one line of one error of ours."""
    if ended.code in (0, None) or (ended.code == 2 and "error: " in said):
        assert len(said) < 6000, "a usage of many pages"
        return
    assert isinstance(ended.code, str), f"exit code {ended.code!r}"
    name, _, message = ended.code.partition(": ")
    kind = getattr(errors, name, None)
    assert isinstance(kind, type), "no error of ours"
    assert issubclass(kind, PruneOnceError), "no error of ours"
    assert "\n" not in message.strip(), "several lines"
