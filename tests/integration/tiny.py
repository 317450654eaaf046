"""The tiny profile run through every stage, in one process, with the paths that dvc.yaml names.

`python -m tests.integration.tiny FOLDER` does it in a process of its own and leaves the metrics in FOLDER/metrics.json.
"""

import importlib
import json
import pickle
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from accelerate.state import AcceleratorState

from pipeline.history import Log
from pipeline.params.document import parse
from pipeline.params.reading import read_yaml
from pipeline.stage import Origin, contract
from pruneonce.deployment import memory
from pruneonce.deployment.measurements import latencies_ms

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "profiles/tiny.yaml"
TASK = "topic"


@dataclass(frozen=True)
class Command:
    """One line of dvc.yaml for one item. flags: parameter of `run` -> path relative to the repository."""

    stage: str
    item: str | None
    flags: dict[str, str]

    @property
    def name(self) -> str:
        return f"{self.stage}@{self.item}" if self.item else self.stage


@dataclass
class Result:
    """What the stages left in `folder`, and what they returned by name."""

    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, path: str) -> Path:
        return self.folder / "data" / path


def document() -> dict[str, Any]:
    """profiles/tiny.yaml with one thread, so that what else runs on this machine neither slows nor changes it."""
    tiny = read_yaml(PROFILE)
    tiny["common"]["threads"] = 1
    return tiny


def stages() -> dict[str, dict[str, Any]]:
    """dvc.yaml: stage -> its block, `do` taken out of foreach."""
    found = read_yaml(ROOT / "dvc.yaml")["stages"]
    return {name: block.get("do", block) for name, block in found.items()}


def flags(cmd: str) -> dict[str, str]:
    """The flags of a command as parameter names: --dense-onnx x -> {"dense_onnx": "x"}. One that is given twice: "x y"."""
    found: dict[str, list[str]] = {}
    words = words_of(cmd)
    for flag, value in zip(words[3::2], words[4::2], strict=True):
        found.setdefault(flag.removeprefix("--").replace("-", "_"), []).append(value)
    return {name: " ".join(values) for name, values in found.items()}


def words_of(cmd: str) -> list[str]:
    """The words of a command, as it is run in the repository's root: a study's begins in its own folder."""
    return shlex.split(re.sub(r"^cd [./]+ && ", "", cmd))


def commands(tiny: dict[str, Any]) -> Iterator[Command]:
    """Every command of dvc.yaml with its templates filled in, in the file's order, which is a topological one."""
    for stage, block in read_yaml(ROOT / "dvc.yaml")["stages"].items():
        if "foreach" not in block:
            yield Command(stage, None, flags(_fill(block["cmd"], tiny)))
            continue
        for key, item in tiny[block["foreach"].strip("${}")].items():
            cmd = _fill(block["do"]["cmd"], {**tiny, "key": key, "item": item})
            yield Command(stage, key, {k: v for k, v in flags(cmd).items() if k != "item"})


def _fill(text: str, scope: dict[str, Any]) -> str:
    def value(match: re.Match[str]) -> str:
        found: Any = scope
        for key in re.findall(r"\w+", match[1]):
            found = found[int(key) if isinstance(found, list) else key]
        return str(found)

    return re.sub(r"\$\{([^}]+)\}", value, text)


def run(command: Command, folder: Path, tiny: dict[str, Any], *, memory_measured: bool = False) -> Any:
    """One stage's `run` on files below `folder`; writes the metrics file as the command line would.

    memory_measured: the memory of each session is measured. Else a number stands for it: each measurement is a process.
    """
    function = importlib.import_module(f"stages.{command.stage}").run
    wants = contract(function)
    loaded = parse(tiny, "tiny")
    paths = {name: folder / path for name, path in command.flags.items()}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    report = paths.pop("metrics")
    sections = {name: loaded.section(name, command.item) for name in wants["section"]}
    paths |= {name: ROOT / getattr(section, name) for name in wants["given"] for section in sections.values()}
    item = dict.fromkeys(wants["item"], command.item)
    AcceleratorState._reset_state(reset_partial_state=True)  # of a process, which a stage has to itself outside of tests
    log = Log(folder / "scratch" / command.name)
    given: dict[str, Any] = dict.fromkeys(wants["log"], log)
    given |= dict.fromkeys(wants["origin"], Origin(dict.fromkeys(command.flags.values(), "0" * 32), "0" * 64))
    with _short_measurements(memory_measured):
        metrics = function(**item, **paths, **sections, **given)
    report.write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(log.scratch, ignore_errors=True)
    return metrics


@contextmanager
def _short_measurements(memory_measured: bool) -> Iterator[None]:
    """Latencies without pauses. The memory of a session from one process, or from none."""
    with (
        mock.patch.dict(latencies_ms.__kwdefaults__, pause_seconds=0.0),
        mock.patch.object(memory, "PROCESSES", 1),
        mock.patch.object(
            memory, "resident_bytes", memory.resident_bytes if memory_measured else lambda *_, **__: 1_000_000
        ),
    ):
        yield


def run_all(folder: Path) -> Result:
    tiny, result = document(), Result(folder)
    for command in commands(tiny):
        result.metrics[command.name] = run(command, folder, tiny, memory_measured=True)
    return result


def unpickled() -> list[str]:
    """The classes and functions that Python looks up to unpickle anything, from now on in this process."""
    found: list[str] = []
    sys.addaudithook(lambda event, args: found.append(".".join(args)) if event == "pickle.find_class" else None)
    return found


if __name__ == "__main__":
    seen = unpickled()
    done = run_all(Path(sys.argv[1]))
    pickle.loads(pickle.dumps(Command))  # `seen` would have it
    (done.folder / "unpickled.json").write_text(json.dumps(seen))
    (done.folder / "metrics.json").write_text(json.dumps(done.metrics))
