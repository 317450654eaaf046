"""The sources of a profile: their splits, rows and bytes, counted from files or taken from `expects`.

The files are at hand for a local source, and for one that DVC recorded in data/raw with this profile's settings.
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
    """A source of rows or of a model."""

    name: str
    files: Mapping[str, Path]  # those at hand, by their name in the source's folder
    names: frozenset[str] | None  # of all its files, once fetched; None: not known
    expects: ExpectedRows | Mapping[str, Any] | None

    @property
    def known(self) -> str:
        """How the page knows its rows."""
        return "counted" if self.files else "expected" if self.expects else "not fetched yet"

    @property
    def bytes(self) -> int | None:
        """Of its files, or as its card says; None if not known yet."""
        if self.files:
            return sum(path.stat().st_size for path in self.files.values())
        return self.expects.bytes if isinstance(self.expects, ExpectedRows) else None

    def splits(self) -> list[str]:
        """The names of the splits that it is known to have."""
        return sorted(_by_split(self.names or ()))

    def lacks(self, split: str) -> bool:
        """Whether it is known to have no such split."""
        return self.names is not None and split not in self.splits()

    def by_split(self) -> dict[str, Path]:
        """The files of rows at hand, by their split."""
        return {split: self.files[name] for split, name in _by_split(self.files).items()}

    def rows(self, split: str, columns: Sequence[str], *, skip_rows: int) -> int | None:
        """Rows of a split that has these columns; None if not known yet.

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
                f"expected column {missing[0]!r} in source {self.name!r}, found {self.expects.columns} in its `expects`."
            )
        if split not in self.expects.rows:
            raise DataError(f"expected the rows of split {split!r} in `expects` of source {self.name!r}, found none.")
        return self.expects.rows[split]

    def facts(self) -> Mapping[str, Any]:
        """A model's configuration. Raises DataError if it is not known yet, ModelError if its file holds none."""
        if "config.json" in self.files:
            return configuration(self.files["config.json"])
        if self.files:
            raise DataError(
                f"expected config.json in source {self.name!r}, found {sorted(self.files)[:8]}. If the model is a folder "
                "below, correct `path` or `members` of this source in params.yaml."
            )
        if isinstance(self.expects, Mapping):
            return self.expects
        raise DataError(
            f"expected the configuration of model {self.name!r}, found none: it was not fetched for this profile and "
            f"has no `expects`. With this profile in params.yaml, run: dvc repro fetch@{self.name}"
        )


def text_bytes(path: Path, column: str) -> int:
    """Bytes of a file of rows; of parquet, those of this column before compression."""
    return tables.column_bytes(path, column) if path.suffix == ".parquet" else path.stat().st_size


def source(name: str, p: Params) -> Source:
    """The source of this name, as the working folder has it."""
    section = "fetch" if name in p.fetch else "fetch_local"
    settings = getattr(p, section)[name]
    stage, names = locked().get(f"{section}@{name}"), _names(settings)
    if stage and (RAW / name).is_dir() and _same(stage.params.get(f"{section}.{name}"), settings):
        files = _inside(RAW / name)
        if not names or names == set(files):  # else they are another profile's: git brings back dvc.lock, not data/raw
            return Source(name, files, frozenset(files), getattr(settings, "expects", None))
    if isinstance(settings, LocalSource):
        files = _local(settings)
        return Source(name, files, frozenset(files), None)
    return Source(name, {}, names, getattr(settings, "expects", None))


def _names(settings: PackageSource | HubSource | LocalSource) -> frozenset[str] | None:
    """Names of the files of rows that the source will have; None for a whole folder, whose content is not known."""
    if isinstance(settings, HubSource):
        return frozenset(f"{split}.parquet" for split in settings.splits)
    whole = isinstance(settings, LocalSource) or any(PurePosixPath(each) == PurePosixPath() for each in settings.members)
    return None if whole else frozenset(settings.members)


def configuration(path: Path) -> Mapping[str, Any]:
    """The facts of a config.json. Raises ModelError."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"expected a model's configuration in {path}, found no JSON: {error}. Get the file again."
        ) from None
    if not isinstance(facts, dict):
        raise ModelError(f"expected a model's configuration in {path}, found a {type(facts).__name__}. Get the file again.")
    return facts


def _by_split(names: Iterable[str]) -> dict[str, str]:
    """Names of files of rows by their split. Files in folders below do not count, as in the stages."""
    return {path.stem: name for name in names if (path := Path(name)).suffix in SUFFIXES and path.name == str(path)}


def _same(recorded: Any, settings: Any) -> bool:
    """Whether the recorded source is this one. `expects` describes its content and does not count."""
    return isinstance(recorded, dict) and {**recorded, "expects": None} == {**settings.model_dump(), "expects": None}


def _inside(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _local(settings: LocalSource) -> dict[str, Path]:
    """The files of a local source under the names that they will have."""
    files: dict[str, Path] = {}
    for name, member in settings.members.items():
        path = Path(settings.path) if member == "." else Path(settings.path) / member
        try:
            files |= _at(path, name)
        except OSError as error:  # no permission, a name that is too long, links in a circle
            raise DataError(
                f"expected a file or folder at {path}, found: {error}. Correct this source in params.yaml."
            ) from None
    return files


def _at(path: Path, name: str) -> dict[str, Path]:
    if path.is_dir():
        return {(Path(name) / inner).as_posix(): file for inner, file in _inside(path).items()}
    if path.is_file():
        return {file_name(name, path): path}
    raise DataError(f"expected a file or folder at {path}, found none. Set `path` of this source in params.yaml.")
