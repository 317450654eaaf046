"""A study on the tiny profile: every command of its dvc.yaml, in one process, over the outs of the tiny pipeline."""

import copy
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from pipeline.history import Log
from pipeline.params.document import merged, override, parse
from pipeline.params.reading import read_yaml
from pipeline.stage import contract
from tests.integration import tiny

FOLDER = tiny.ROOT / "study"


@dataclass(frozen=True)
class Command:
    """One line of a study's dvc.yaml, its templates filled in. flags: as on the command line, by parameter name."""

    name: str
    module: str
    flags: dict[str, str]


def document() -> dict[str, Any]:
    """The tiny profile with fewer steps: what the study promises does not hang on how much is learned."""
    tiny_document = tiny.document()
    tiny_document["study"]["steps"] = {tiny.TASK: 15}
    tiny_document["study"]["longer"]["steps"] = 20
    tiny_document["quantize"]["epochs"] = 0.5
    return tiny_document


def commands(document: dict[str, Any], study: Path = FOLDER) -> Iterator[Command]:
    """Every command of dvc.yaml in the folder `study`, in the file's order, which is a topological one."""
    for stage, block in read_yaml(study / "dvc.yaml")["stages"].items():
        matrix = {key: _values(value, document) for key, value in block.get("matrix", {}).items()}
        for chosen in product(*matrix.values()):
            cmd = tiny._fill(block["cmd"], {**document, "item": dict(zip(matrix, chosen, strict=True))})
            name = "@".join(filter(None, [stage, "-".join(map(str, chosen))]))
            yield Command(name, tiny.words_of(cmd)[2], tiny.flags(cmd))


def _values(value: Any, document: dict[str, Any]) -> list[Any]:
    """A list as it stands, or the one in the params file: "${study.tasks}"."""
    for key in value.strip("${}").split(".") if isinstance(value, str) else ():
        document = document[key]
    return list(document if isinstance(value, str) else value)


def run(command: Command, folder: Path, document: dict[str, Any], log: Log | None = None) -> Any:
    """One stage's `run` on files below `folder`, as `stage.main` calls it; writes the metrics file. The document stays."""
    function = importlib.import_module(command.module).run
    wants, flags = contract(function), dict(command.flags)
    document = copy.deepcopy(document)
    if part := flags.pop("part", None):
        document = merged(document, read_yaml(folder / part))
    for change in flags.pop("set", "").split():
        override(document, change)
    loaded = parse(document, "tiny")
    items = {name: flags.pop(name) for name in wants["item"]}
    paths = {name: folder / path for name, path in flags.items()}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    report = paths.pop("metrics")
    sections = {name: loaded.section(name, next(iter(items.values()), None)) for name in wants["section"]}
    AcceleratorState._reset_state(reset_partial_state=True)  # as in tiny.run
    logs = dict.fromkeys(wants["log"], log or Log(folder / "scratch" / command.name))
    metrics = function(**items, **paths, **sections, **logs)
    report.write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    return metrics


def run_all(folder: Path) -> dict[str, Any]:
    """Name -> what the stage returned; `folder` holds the outs of the tiny pipeline."""
    return {command.name: run(command, folder, document()) for command in commands(document())}
