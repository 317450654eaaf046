"""DVC's lock files, the pipeline's and the studies', as a graph: stages, and the md5 of everything they read and wrote."""

import functools
import itertools
import posixpath
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.params.reading import parse_yaml, read_text
from pruneonce.errors import ConfigError

# The folders of the DVC projects; no stage name stands in two of them.
PIPELINE, STUDY, PATTERNS = Path(), Path("study"), Path("study/patterns")
FOLDERS = (PIPELINE, STUDY, PATTERNS)
LOCK = "dvc.lock"
Reader = Callable[[Path], str | None]  # the text of a file of the project, of now or of a commit; None if there is none


@dataclass(frozen=True)
class Stage:
    """One entry of a lock file. deps, outs: path from the repository's root -> md5. params: dotted key -> value."""

    name: str
    deps: dict[str, str]
    outs: dict[str, str]
    params: dict[str, Any]
    command: str = ""


def files_of(root: Path) -> Reader:
    """The files of a project that lies in this folder."""
    return lambda path: read_text(root / path) if (root / path).exists() else None


def locked(root: Path = Path()) -> dict[str, Stage]:
    """The stages of the lock files by name; empty if nothing was run yet. Raises ConfigError."""
    return locked_in(files_of(root))


def locked_in(read: Reader) -> dict[str, Stage]:
    """`locked` of a project whose files `read` gives."""
    stages: dict[str, Stage] = {}
    for folder in FOLDERS:
        with blocks(folder / LOCK, read) as entries:
            stages |= {name: _stage(name, entry, folder) for name, entry in entries.items()}
    return stages


@contextmanager
def blocks(path: Path, read: Reader) -> Iterator[dict[str, Any]]:
    """The stages in a file of DVC's; empty if there is none. Raises ConfigError if its structure is not DVC's."""
    try:
        text = read(path)
        yield {} if text is None else (_parsed(text, path) or {}).get("stages", {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"expected stages as DVC has them in {path}, found another structure ({type(error).__name__}: {error}). "
            f"Restore it with: git checkout -- {path}"
        ) from None


@functools.lru_cache(maxsize=32)
def _parsed(text: str, path: Path) -> Any:
    """A lock file of many commits is the same text. The result is not to be changed."""
    return parse_yaml(text, str(path), generated=path.name == LOCK)


def _stage(name: str, entry: Mapping[str, Any], folder: Path) -> Stage:
    """An entry of the lock file in `folder`. Its paths are relative to that folder."""

    def md5s(kind: str) -> dict[str, str]:
        return {posixpath.normpath(folder / each["path"]): each.get("md5", "") for each in entry.get(kind, [])}

    values = {key: value for file in entry.get("params", {}).values() for key, value in file.items()}
    if not all(isinstance(text, str) for text in (name, *values, *md5s("deps").values(), *md5s("outs").values())):
        raise TypeError(f"a name or an md5 of {name} that is no text")
    return Stage(name, md5s("deps"), md5s("outs"), values, command_of(entry))


def command_of(entry: Mapping[str, Any]) -> str:
    """The command of a stage in dvc.yaml or dvc.lock; of several, one a line."""
    command = entry.get("cmd", "")
    return "\n".join(map(str, command)) if isinstance(command, list) else str(command)


def current(root: Path = Path()) -> dict[str, Stage]:
    """The stages of the lock files that dvc.yaml has now, with the tasks and sources of params.yaml.

    DVC also keeps the entries of former profiles; these are left out.
    """
    return current_in(files_of(root))


def current_in(read: Reader) -> dict[str, Stage]:
    """`current` of a project whose files `read` gives."""
    text = read(Path("params.yaml"))
    values = (None if text is None else parse_yaml(text, "params.yaml")) or {}
    names: set[str] = set()
    for folder in FOLDERS:
        with blocks(folder / "dvc.yaml", read) as stages:
            names |= {name for stage, block in stages.items() for name in cells(stage, block, values)}
    return {name: stage for name, stage in locked_in(read).items() if name in names}


def cells(name: str, block: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The stages of one block of dvc.yaml: `name`, or `name@item` for each item of foreach or matrix -> what a template of
    that stage may name beside params.yaml (`item`, `key`)."""

    def resolved(data: Any) -> Any:
        """The list or mapping itself, or the one that `${key.of.params}` names; empty if there is none."""
        if not isinstance(data, str):
            return data
        return functools.reduce(lambda level, key: level.get(key) or {}, data.strip("${} ").split("."), values)

    if "matrix" in block:
        axes = {axis: resolved(axis_values) for axis, axis_values in resolved(block["matrix"]).items()}
        return {
            f"{name}@{'-'.join(map(as_text, cell))}": {"item": dict(zip(axes, cell, strict=True))}
            for cell in itertools.product(*axes.values())
        }
    if "foreach" in block:
        items = resolved(block["foreach"])
        return {
            f"{name}@{as_text(key)}": {"key": key, "item": items[key]} if isinstance(items, Mapping) else {"item": key}
            for key in items
        }
    return {name: {}}


def as_text(value: Any) -> str:
    """A value as DVC writes it into a template."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def project(stage: str) -> Path:
    """The folder of the DVC project that has this stage."""
    for folder in FOLDERS:
        with blocks(folder / "dvc.yaml", files_of(PIPELINE)) as stages:
            if short(stage).partition("@")[0] in stages:
                return folder
    return PIPELINE


def code(stage: str) -> list[Path]:
    """The deps of a stage that its block in dvc.yaml names without a template and that are not in a folder `data`."""
    folder = project(stage)
    with blocks(folder / "dvc.yaml", files_of(PIPELINE)) as stages:
        block = stages.get(short(stage).partition("@")[0], {})
        deps = [dep for dep in block.get("do", block).get("deps", []) if "${" not in dep]
    paths = [Path(posixpath.normpath(folder / dep)) for dep in deps]
    return [path for path in paths if "data" not in path.parts]


def short(stage: str) -> str:
    """study_dense@r8 of study/dvc.yaml:study_dense@r8, which is its name in the repository's root."""
    return stage.rpartition(":")[2]


def command(verb: str, *stages: str) -> str:
    """A command of DVC on stages, to be typed in the repository's root."""
    by_project: dict[Path, list[str]] = {}
    for stage in stages:
        by_project.setdefault(project(stage), []).append(short(stage))
    return " && ".join(
        f"dvc {'' if folder == PIPELINE else f'--cd {folder} '}{verb} {shlex.join(names)}"
        for folder, names in sorted(by_project.items())
    )


def producers(path: str, stages: Mapping[str, Stage]) -> list[Stage]:
    """The stages that write `path`, the folder it lies in, or something inside it."""
    return [stage for stage in stages.values() if any(meet(out, path) for out in stage.outs)]


def meet(one: str, other: str) -> bool:
    """Whether they are one path, or one lies in the other."""
    return _within(one, other) or _within(other, one)


def _within(path: str, folder: str) -> bool:
    """Whether a path is this folder or lies in it. Strings, because it is asked some hundred thousand times of a history."""
    return folder in (path, ".") or path.startswith(f"{folder.rstrip('/')}/")


def makers(path: str, md5: str, stages: Mapping[str, Stage], now: Collection[str]) -> list[Stage]:
    """The stages that made what a stage read at `path`, with this md5.

    now: the names of the current stages. A stage of a former profile counts only if it wrote these very bytes, and never
    for a folder that several stages write into.
    """
    found = producers(path, stages)
    same = [stage for stage in found if stage.outs.get(path) == md5]
    inside = [stage for stage in found if path not in stage.outs and stage.name in now]
    return [stage for stage in same if stage.name in now] or same or inside
