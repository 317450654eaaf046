"""What differs between dvc.lock and this folder, stage by stage, as `dvc status` finds it; without DVC."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.lineage.blocks import Block, value_of
from pipeline.lineage.places import OBJECTS, Stores, folder_md5
from pipeline.params.reading import read_yaml
from pipeline.tracking.lock import Stage

Kind = Literal["first", "command", "dep", "param", "out"]


@dataclass(frozen=True)
class Change:
    """One difference. state: DVC's word (modified, new, deleted, not in cache). old, new: values, or md5s where known."""

    kind: Kind
    name: str = ""
    state: str = ""
    old: Any = None
    new: Any = None


class Workspace:
    """This folder's files and parameters; each is read once."""

    def __init__(self) -> None:
        self.stores = Stores()
        self.md5, self.values = functools.cache(self._md5), functools.cache(self._values)

    def _md5(self, path: str) -> str | None:
        """md5 of a file or folder; None if there is none."""
        return folder_md5(Path(path)) if Path(path).exists() else None

    def _values(self, file: Path) -> Any:
        """The values of a params file; empty if there is none."""
        return (read_yaml(file) if file.exists() else {}) or {}

    def kept(self, block: Block, md5: str) -> bool:
        """Whether DVC's cache has a file, or the listing of a folder."""
        return (self.stores.cache(block.project) / OBJECTS / md5[:2] / md5[2:]).is_file()

    def changes(self, block: Block, stage: Stage | None) -> list[Change]:
        """All in which the stage differs from its entry in dvc.lock; empty if DVC would not run it for its own sake."""
        if stage is None:
            return [Change("first")]
        command = [Change("command", "", "modified", stage.command, block.command)] if stage.command != block.command else []
        return [*command, *self._params(block, stage), *self._deps(block, stage), *self._outs(block, stage)]

    def _params(self, block: Block, stage: Stage) -> Iterator[Change]:
        for key, file in block.params.items():
            there, new = value_of(self.values(file), key)
            if key not in stage.params:
                yield Change("param", key, "new", None, new)
            elif not there:
                yield Change("param", key, "deleted", stage.params[key], None)
            elif new != stage.params[key]:
                yield Change("param", key, "modified", stage.params[key], new)

    def _deps(self, block: Block, stage: Stage) -> Iterator[Change]:
        for path in block.deps:
            old, new = stage.deps.get(path), self.md5(path)
            if new is None:
                yield Change("dep", path, "deleted", old, None)
            elif not old:
                yield Change("dep", path, "new", None, new)
            elif old != new:
                yield Change("dep", path, "modified", old, new)

    def _outs(self, block: Block, stage: Stage) -> Iterator[Change]:
        for path, cached in block.outs.items():
            old, new = stage.outs.get(path), self.md5(path)
            if new is None:
                yield Change("out", path, "deleted", old, None)
            elif not old:
                yield Change("out", path, "new", None, new)
            elif old != new:
                yield Change("out", path, "modified", old, new)
            elif cached and not self.kept(block, old):
                yield Change("out", path, "not in cache", old, new)
