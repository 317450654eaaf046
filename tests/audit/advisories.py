"""Advisories in a folder, as OSV's JSON or as the YAML of pypa/advisory-database, and the versions that they affect."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from ruamel.yaml import YAML

from pruneonce.errors import DataError


@dataclass(frozen=True)
class Found:
    """An advisory that affects a version. fixed: versions without the fault, as the advisory has them."""

    package: str
    version: str
    name: str
    fixed: tuple[str, ...]


def read(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Every advisory below the folder. Raises DataError for a file that is none, and for a folder without any."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".yaml", ".yml") and path.is_file())
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not files:
        raise DataError(f"expected a folder of advisories in JSON or YAML, found none in {folder}. Get the database again.")
    yaml = YAML(typ="safe")
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
            said = json.loads(text) if path.suffix == ".json" else yaml.load(text)
            if not isinstance(said["id"], str) or not isinstance(said.get("affected", []), list):
                raise TypeError("no `id`, or no list `affected`")
        except Exception as error:  # of two parsers
            raise DataError(f"expected an advisory in {path}, found: {error or type(error).__name__}.") from None
        yield said


def affecting(packages: Mapping[str, str], folder: Path) -> tuple[list[Found], int]:
    """(what affects these versions, number of advisories read). packages: name -> version."""
    exact = {canonicalize_name(name): version for name, version in packages.items()}
    found, count = [], 0
    for advisory in read(folder):
        count += 1
        if advisory.get("withdrawn"):
            continue
        for affected in advisory.get("affected", []):
            package = affected.get("package", {})
            name = canonicalize_name(str(package.get("name", "")))
            if package.get("ecosystem") == "PyPI" and name in exact and _affects(affected, exact[name]):
                found.append(Found(name, exact[name], advisory["id"], tuple(_fixed(affected))))
    return sorted(set(found), key=lambda one: (one.package, one.name)), count


def _affects(affected: Mapping[str, Any], version: str) -> bool:
    """By its list of versions, or by its ranges. A version that cannot be compared counts as affected."""
    own = Version(version)
    for listed in affected.get("versions", []):
        try:
            if Version(listed) == own:
                return True
        except InvalidVersion:
            if listed == version:
                return True
    try:
        return any(_inside(one["events"], own) for one in affected.get("ranges", []) if one["type"] == "ECOSYSTEM")
    except InvalidVersion:
        return True


def _inside(events: list[Mapping[str, str]], own: Version) -> bool:
    """OSV's ranges: from `introduced` (0: from the first) to before `fixed`, or up to `last_affected`."""
    ends = [(*next(iter(event.items())),) for event in events]
    order = sorted(ends, key=lambda end: Version(end[1]))
    for (kind, value), (then, limit) in pairwise([*order, ("", "0")]):
        if kind != "introduced" or own < Version(value):
            continue
        if then == "fixed" and own >= Version(limit):
            continue
        if then == "last_affected" and own > Version(limit):
            continue
        return True
    return False


def _fixed(affected: Mapping[str, Any]) -> Iterator[str]:
    for one in affected.get("ranges", []):
        yield from (event["fixed"] for event in one["events"] if "fixed" in event and one["type"] == "ECOSYSTEM")
