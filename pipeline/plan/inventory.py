"""What a profile's sources hold: counted where they are here, taken from `expects` where they are not.

A source is here if it is a local one, or if DVC recorded that data/raw has it as this profile asks for it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.params.document import Params
from pipeline.params.sources import ExpectedRows, HubSource, LocalSource, PackageSource
from pipeline.tracking.lock import locked
from pruneonce.errors import DataError, ModelError
from pruneonce.sources import tables
from pruneonce.sources.folders import file_name
from pruneonce.sources.formats import SUFFIXES

RAW = Path("data/raw")


@dataclass(frozen=True)
class Source:
    """files: those that are here, by their name in the source's folder. names: of all that will be; None: not known."""

    name: str
    files: Mapping[str, Path]
    names: frozenset[str] | None
    expects: ExpectedRows | Mapping[str, Any] | None

    @property
    def known(self) -> str:
        """How its rows are known."""
        return "counted" if self.files else "expected" if self.expects else "not fetched yet"

    @property
    def bytes(self) -> int | None:
        """Of its files, or as its card says; None if nobody knows yet."""
        if self.files:
            return sum(path.stat().st_size for path in self.files.values())
        return self.expects.bytes if isinstance(self.expects, ExpectedRows) else None

    def splits(self) -> list[str]:
        """The splits that it is known to have, by name."""
        return sorted(_by_split(self.names or ()))

    def lacks(self, split: str) -> bool:
        """Whether it is known to have no such split."""
        return self.names is not None and split not in self.splits()

    def by_split(self) -> dict[str, Path]:
        """The files of rows that are here, by their split."""
        return {split: self.files[name] for split, name in _by_split(self.files).items()}

    def rows(self, split: str, columns: Sequence[str], *, skip_rows: int) -> int | None:
        """Rows of a split that has these columns; None if nobody knows yet.

        Raises DataError if there is no such split or column.
        """
        if self.lacks(split):
            raise DataError(f"expected a split {split!r} in source {self.name!r}, found {self.splits()}.")
        if self.files:
            return tables.count(self.by_split()[split], columns, skip_rows=skip_rows)
        if not isinstance(self.expects, ExpectedRows):
            return None
        missing = [column for column in columns if column not in self.expects.columns]
        if missing:
            raise DataError(
                f"expected column {missing[0]!r} in source {self.name!r}, found columns {self.expects.columns} expected."
            )
        if split not in self.expects.rows:
            raise DataError(f"expected the rows of split {split!r} in `expects` of source {self.name!r}, found none.")
        return self.expects.rows[split]

    def facts(self) -> Mapping[str, Any]:
        """A model's configuration. Raises DataError if nobody knows it yet, ModelError if its file is none."""
        if "config.json" in self.files:
            return _configuration(self.files["config.json"])
        if self.files:
            raise DataError(
                f"expected config.json in source {self.name!r}, found {sorted(self.files)[:8]}. If the model is a folder "
                "below, mend `path` or `members` of this source in params.yaml."
            )
        if isinstance(self.expects, Mapping):
            return self.expects
        raise DataError(
            f"expected the configuration of model {self.name!r}, found none: it was not fetched for this profile and "
            f"has no `expects`. Make params.yaml this profile and run: dvc repro fetch@{self.name}"
        )


def source(name: str, p: Params) -> Source:
    """The source of this name, as it stands in this folder."""
    section = "fetch" if name in p.fetch else "fetch_local"
    given = getattr(p, section)[name]
    stage, names = locked().get(f"{section}@{name}"), _names(given)
    if stage and (RAW / name).is_dir() and _same(stage.params.get(f"{section}.{name}"), given):
        files = _inside(RAW / name)
        if not names or names == set(files):  # else another profile's: git may have brought back dvc.lock alone
            return Source(name, files, frozenset(files), getattr(given, "expects", None))
    if isinstance(given, LocalSource):
        files = _local(given)
        return Source(name, files, frozenset(files), None)
    return Source(name, {}, names, getattr(given, "expects", None))


def _names(given: PackageSource | HubSource | LocalSource) -> frozenset[str] | None:
    """Of the files of rows that the source will have; None for a folder with who knows what in it."""
    if isinstance(given, HubSource):
        return frozenset(f"{split}.parquet" for split in given.splits)
    whole = isinstance(given, LocalSource) or any(PurePosixPath(each) == PurePosixPath() for each in given.members)
    return None if whole else frozenset(given.members)


def _configuration(path: Path) -> Mapping[str, Any]:
    """The facts of a config.json. Raises ModelError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"expected a model's configuration in {path}, found no JSON: {error}. Get the file again."
        ) from None
    if not isinstance(found, dict):
        raise ModelError(f"expected a model's configuration in {path}, found a {type(found).__name__}. Get the file again.")
    return found


def _by_split(names: Iterable[str]) -> dict[str, str]:
    """Names of files of rows by their split; as the stages do, not looking into folders."""
    return {path.stem: name for name in names if (path := Path(name)).suffix in SUFFIXES and path.name == str(path)}


def _same(recorded: Any, given: Any) -> bool:
    """Whether the fetched source is this one: `expects` says what is in it, not which it is."""
    return isinstance(recorded, dict) and {**recorded, "expects": None} == {
        "expects": None,
        **given.model_dump(exclude={"expects"}),
    }


def _inside(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _local(given: LocalSource) -> dict[str, Path]:
    """The files of a local source under the names that they will have."""
    found: dict[str, Path] = {}
    for name, member in given.members.items():
        path = Path(given.path) if member == "." else Path(given.path) / member
        try:
            found |= _at(path, name)
        except OSError as error:  # no permission, a name that is too long, links in a circle
            raise DataError(
                f"expected a file or folder at {path}, found: {error}. Mend this source in params.yaml."
            ) from None
    return found


def _at(path: Path, name: str) -> dict[str, Path]:
    if path.is_dir():
        return {(Path(name) / inner).as_posix(): file for inner, file in _inside(path).items()}
    if path.is_file():
        return {file_name(name, path): path}
    raise DataError(f"expected a file or folder at {path}, found none. Set `path` of this source in params.yaml.")
