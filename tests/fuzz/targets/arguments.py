"""Command lines of flows and stages: `python -m flows.*`, `python -m stages.*`. All is checked, and nothing is computed."""

import contextlib
import importlib
import io
import json
import os
import pkgutil
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import flows.compress
import flows.promote
import stages
from pipeline import stage
from pruneonce.errors import PipelineError
from tests.fuzz import damage
from tests.fuzz.case import ROOT, Files
from tests.fuzz.targets.commands import judge
from tests.fuzz.targets.yaml_text import DOCUMENT, HOSTILE

OUTS: tuple[str, ...] = ()
SECONDS = 20.0
SHARE = 14

STAGES = sorted(module.name for module in pkgutil.iter_modules(stages.__path__))
REACHED = "all arguments are good"
PATHS = (
    *(
        "in.json",
        "in.json",
        "in.json",
        "folder",
        "folder",
        "out",
        "out/deep/x",
        "nowhere",
        ".",
        "",
        "in.json/x",
        "folder/../out",
    ),
    *("x" * 300, "x" * 5000, "loop", "pipe", "ü", *damage.WORDS),
)
OUTSIDE = ("/nowhere/x", "../../out", "C:\\x")  # where an out may well be told to go: not written in here
ITEMS = ("topic", "minilm", "default", "r8", "", "topic-1", "x" * 300, *damage.WORDS)
PROFILES = ("tiny", "default", "base", "", "..", "/etc/passwd", "x" * 300, *damage.WORDS)
FLAGS = ("--help", "--no-such", "-x", "--", "--set", "--part", "extra")


def make(draw: Random) -> Files:
    files: Files = {}
    if draw.random() < 0.4:
        words = [f"flows.{draw.choice(('compress', 'promote'))}", *_of_flow(draw)]
    else:
        name = draw.choice(STAGES)
        words = [f"stages.{name}", *_of_stage(name, draw)]
    if draw.random() < 0.1:
        words.insert(draw.randint(1, len(words)), draw.choice(FLAGS))
    if draw.random() < 0.3:
        files["part.yaml"] = damage.dumped(damage.document({"sparsify": DOCUMENT["sparsify"]}, draw))
    if draw.random() < 0.15:
        files["params.yaml"] = damage.dumped(damage.document(DOCUMENT, draw))
    return {**files, "argv.json": json.dumps(words).encode()}


def _of_flow(draw: Random) -> Iterator[str]:
    for _ in range(draw.randrange(3)):
        yield draw.choice(
            (
                f"--profile={draw.choice(PROFILES)}",
                f"--set={_change(draw)}",
                f"--pipeline={draw.choice(('compress', 'study', 'patterns', 'x', ''))}",
                f"--alias={draw.choice(('champion', 'latest', 'v1', 'x' * 200, *damage.WORDS))}",
                f"--why={draw.choice((*damage.WORDS, 'x' * 5000))}",
                "--dry-run",
                draw.choice(ITEMS),
            )
        )


def _of_stage(name: str, draw: Random) -> Iterator[str]:
    names = stage.contract(importlib.import_module(f"stages.{name}").run)
    few = draw.random() < 0.6
    for argument in [*names["dep"], *names["out"], *names["record"], "metrics"]:
        if draw.random() < 0.97:
            choices = ("in.json", "folder") if argument in names["dep"] else ("out/a", "out/b")
            path = draw.choice(choices if few else PATHS)
            yield f"--{argument.replace('_', '-')}={path if path not in OUTSIDE else 'out'}"
    for argument in names["item"]:
        yield f"--{argument}={draw.choice(ITEMS[:4] if few else ITEMS)}"
    for _ in range(draw.choice((0, 0, 1, 2))):
        yield f"--set={_change(draw)}" if draw.random() < 0.7 else f"--part={draw.choice(('part.yaml', *PATHS))}"


def _change(draw: Random) -> str:
    section = draw.choice(("sparsify", "finetune", "common", "tasks", "machine", *damage.WORDS))
    key = draw.choice((*DOCUMENT.get(section, {"x": 1}), "no_such", ""))
    value = draw.choice((*HOSTILE, *map(str, damage.EXTREMES[:-2]), "1", "0.5"))
    return draw.choice((f"{section}.{key}={value}", f"{section}.{key}={value}", f"{section}.{key}", f"={value}"))


def run(folder: Path) -> None:
    _lay()
    module, *words = json.loads(Path("argv.json").read_text())
    said = io.StringIO()
    with contextlib.redirect_stderr(said), _nothing_computed([module, *words]):
        try:
            found = importlib.import_module(module)
            stage.main(found.run) if module.startswith("stages.") else found.main()
        except SystemExit as ended:
            if isinstance(ended.code, str):  # `\nsparsify: ConfigError: ...`
                ended.code = ended.code.strip().removeprefix(f"{module.rpartition('.')[2]}: ")
            judge(ended, said.getvalue())


def _lay() -> None:
    if not Path("params.yaml").exists():
        shutil.copyfile(ROOT / "profiles/tiny.yaml", "params.yaml")
    Path("profiles").mkdir()
    shutil.copyfile(ROOT / "profiles/tiny.yaml", "profiles/tiny.yaml")
    shutil.copyfile(ROOT / "dvc.yaml", "dvc.yaml")
    Path("in.json").write_text("{}")
    Path("folder").mkdir()
    Path("folder/a.json").write_text("{}")
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")


@contextlib.contextmanager
def _nothing_computed(words: list[str]) -> Iterator[None]:
    """Behind the arguments: no MLflow, no Prefect, no launcher, no training."""

    def reached(*args: Any, **kwargs: Any) -> Any:
        raise PipelineError(REACHED)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", words))
        for owner, name, other in (
            (stage, "stage_run", reached),
            (stage.processes, "end_with_parent", lambda: None),
            (stage.processes, "guard", lambda: None),
            (flows.compress, "FLOWS", dict.fromkeys(flows.compress.FLOWS, (reached, None))),
            (flows.compress.trouble, "check_prefect", lambda: None),
            (flows.compress, "say_errors_once", lambda: None),
            (flows.promote, "say_errors_once", lambda: None),
            (flows.promote.committed, "check", lambda *_: None),
            (flows.promote, "promote", reached),
        ):
            stack.enter_context(mock.patch.object(owner, name, other))
        yield
