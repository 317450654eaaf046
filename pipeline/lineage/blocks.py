"""dvc.yaml as DVC reads it: every stage with its templates filled in. Paths are from the repository's root."""

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.params.reading import read_yaml
from pipeline.tracking.lock import FOLDERS, PIPELINE, as_text, blocks, cells, command_of, files_of
from pruneonce.errors import ConfigError

TEMPLATE = re.compile(r"\$\{\s*([\w.\-]+(?:\[\w+\][\w.\-]*)*)\s*\}")


@dataclass(frozen=True)
class Block:
    """A stage as dvc.yaml and params.yaml define it now.

    outs: path -> whether DVC's cache keeps it. params: dotted key -> its file.
    """

    name: str
    project: Path
    command: str
    deps: tuple[str, ...]
    outs: dict[str, bool]
    params: dict[str, Path]

    @property
    def address(self) -> str:
        """Its name in the repository's root, as DVC has it."""
        return self.name if self.project == PIPELINE else f"{self.project}/dvc.yaml:{self.name}"


def defined() -> dict[str, Block]:
    """Every stage of all projects by name, in the order of the files, in which each comes after those it reads.

    Raises ConfigError where dvc.yaml and params.yaml do not fit together.
    """
    file = PIPELINE / "params.yaml"
    values = (read_yaml(file) if file.exists() else {}) or {}
    found: dict[str, Block] = {}
    for folder in FOLDERS:
        with blocks(folder / "dvc.yaml", files_of(PIPELINE)) as stages:
            for name, block in stages.items():
                for cell, more in cells(name, block, values).items():
                    found[cell] = _block(cell, folder, block.get("do", block), {**values, **more})
    return found


def _block(name: str, folder: Path, block: Mapping[str, Any], scope: Mapping[str, Any]) -> Block:
    def path(written: str) -> str:
        return posixpath.normpath(folder / fill(written, scope, name))

    outs: dict[str, bool] = {}
    for kind in ("outs", "metrics", "plots"):
        for out in block.get(kind, []):
            for written, options in out.items() if isinstance(out, Mapping) else [(out, {})]:
                outs[path(written)] = bool((options or {}).get("cache", True))
    deps = tuple(path(dep) for dep in block.get("deps", []))
    params = {key: file for file, key in _params(block, folder, scope, name)}
    return Block(name, folder, fill(command_of(block), scope, name), deps, outs, params)


def _params(block: Mapping[str, Any], folder: Path, scope: Mapping[str, Any], name: str) -> Iterator[tuple[Path, str]]:
    """(file, dotted key) of every parameter; of a file that is named alone, its sections."""
    for entry in block.get("params", []):
        for file, keys in entry.items() if isinstance(entry, Mapping) else [("params.yaml", [entry])]:
            place = Path(posixpath.normpath(folder / fill(file, scope, name)))
            whole = (read_yaml(place) or {}) if keys is None and place.exists() else ()
            yield from ((place, fill(key, scope, name)) for key in keys or whole)


def fill(text: str, scope: Mapping[str, Any], stage: str) -> str:
    """`text` with `${a.b}` replaced by the value. Raises ConfigError for a key that is not there."""

    def value(match: re.Match[str]) -> str:
        found: Any = scope
        for key in re.findall(r"[\w\-]+", match[1]):
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (KeyError, IndexError, TypeError, ValueError):
                raise ConfigError(
                    f"expected {match[1]} in params.yaml, for stage {stage} of dvc.yaml, found none."
                ) from None
        return as_text(found)

    return TEMPLATE.sub(value, text)


def value_of(values: Any, key: str) -> tuple[bool, Any]:
    """(whether it is there, the value) of a dotted key."""
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False, None
        values = values[part]
    return True, values
