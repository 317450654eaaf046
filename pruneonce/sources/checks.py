"""Checks: a source that was fetched is the one that params.yaml expects."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pruneonce.errors import ChecksumMismatch, SourceError
from pruneonce.sources.folders import faults_as_errors

CORRECT_EXPECTS = "Is this the right revision? Then correct `expects` of this source in params.yaml."


def verify(path: Path, sha256: str) -> None:
    """Raise ChecksumMismatch unless the file's sha256 is the pinned one; SourceError for a folder."""
    if not path.is_file():
        raise SourceError(f"expected a file with sha256 {sha256} at {path}, found a folder. Set its sha256 to null.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise mismatch(path.name, sha256, digest)


def mismatch(name: str, expected: str, digest: str) -> ChecksumMismatch:
    """Return the error of a file whose sha256 is not the pinned one."""
    return ChecksumMismatch(
        f"expected sha256 {expected} for {name}, found {digest}. Nothing was unpacked. If the new content is right, pin its "
        "checksum in params.yaml."
    )


def check_model(folder: Path, facts: Mapping[str, Any]) -> None:
    """Raise SourceError at the first fact that differs in the model's config.json."""
    path = folder / "config.json"
    with faults_as_errors(f"read {path}"):
        config = json.loads(path.read_text()) if path.is_file() else {}
    if not isinstance(config, dict):
        raise SourceError(f"expected an object in {path}, found {str(config)[:100]!r}.")
    for key, value in facts.items():
        if config.get(key) != value:
            there = repr(config[key]) if key in config else "nothing"
            raise SourceError(f"expected {key} {value!r} in {path}, found {there}. {CORRECT_EXPECTS}")


def check_splits(folder: Path, columns: Sequence[str], rows: Mapping[str, int]) -> None:
    """Raise SourceError at the first split whose columns or number of rows differ."""
    import pyarrow.parquet as pq

    for split, count in rows.items():
        path = folder / f"{split}.parquet"
        if not path.is_file():
            names = sorted(p.name for p in folder.iterdir())
            raise SourceError(f"expected {path}, found {names}. Correct `splits` or `expects`.")
        table = pq.ParquetFile(path)
        names, total = table.schema_arrow.names, table.metadata.num_rows
        if (sorted(names), total) != (sorted(columns), count):
            raise SourceError(
                f"expected columns {list(columns)} and {count} rows in {path}, found {names} and {total}. {CORRECT_EXPECTS}"
            )
