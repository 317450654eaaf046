"""Where the model and the data of a task come from, and how the model was made: out of what dvc.lock says of the stages."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.tracking.lock import Stage


@dataclass(frozen=True)
class Source:
    """A source of `fetch` or `fetch_local`. id: its name where it was published, else its name here."""

    name: str
    id: str
    version: str
    checksum: str
    published: bool  # on the Hub, so that a card may link to it by its id

    @property
    def shown(self) -> str:
        """One phrase."""
        return " ".join(filter(None, [self.id, self.version, f"({self.checksum})" if self.checksum else ""]))


def source(name: str, stages: Mapping[str, Stage]) -> Source:
    """The source of this name. A path of the user's machine is not named."""
    values: Mapping[str, Any] = {}
    for stage in ("fetch", "fetch_local"):
        if found := stages.get(f"{stage}@{name}"):
            values = found.params.get(f"{stage}.{name}") or {}
    checksum = f"sha256 {values['sha256'][:12]}" if values.get("sha256") else ""
    if "repository" in values:
        return Source(name, values["repository"], f"at {values['revision'][:12]}", checksum, True)
    if "package" in values:
        package, _, version = values["package"].partition("==")
        return Source(name, package, version, checksum, False)
    return Source(name, name, "(files of the user)" if values else "", checksum, False)


def recipe(stage: str, task: str, stages: Mapping[str, Stage]) -> dict[str, Any]:
    """The parameters with which a stage of this task ran; empty if dvc.lock does not say."""
    found = stages.get(f"{stage}@{task}")
    if found is None:
        return {}
    return {**(found.params.get(stage) or {}), **(found.params.get(f"tasks.{task}.{stage}") or {})}


def task_source(task: str, stages: Mapping[str, Stage]) -> Source:
    """The source of the task's data."""
    return source(recipe("prepare_task", task, stages).get("source", task), stages)
