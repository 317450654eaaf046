"""Questions about runs and registered versions that are there: nothing is written. Raises TrackerUnreachable."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient, artifacts

from pipeline.tracking.address import mlflow_uri
from pipeline.tracking.lock import Stage
from pipeline.tracking.open_run import TAG
from pipeline.tracking.runs import runs_that_made
from pipeline.tracking.store import refused, store

PAGE = 1000  # of what a search finds; the next page is asked for


@dataclass(frozen=True)
class Run:
    """A run of a stage, or of a flow. results: its closing metrics. started: in milliseconds."""

    id: str
    name: str
    tags: dict[str, str]
    results: dict[str, float]
    started: int

    @property
    def seconds(self) -> float | None:
        """How long its stage took."""
        return self.results.get("seconds")

    @property
    def stage(self) -> Stage | None:
        """What the run says of its stage, as a lock file would; None for the run of a flow. Its parameters are not here."""
        name = self.tags.get("pruneonce.stage")
        return Stage(name, self._md5s("deps") | self._md5s("code"), self._md5s("outs"), {}) if name else None

    def _md5s(self, kind: str) -> dict[str, str]:
        """Path -> md5, as `open_run.md5_tags` wrote them; empty if they were too many for a tag."""
        try:
            found = json.loads(self.tags.get(f"{TAG}{kind}", "{}"))
        except ValueError:
            return {}
        return {str(path): str(md5) for path, md5 in found.items()} if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Registered:
    """A version of a registered model."""

    model: str
    version: str
    aliases: tuple[str, ...]
    tags: dict[str, str]
    run_id: str

    @property
    def name(self) -> str:
        """models:/pruneonce-r8/3, with its aliases."""
        return " ".join([f"models:/{self.model}/{self.version}", *(f"@{alias}" for alias in self.aliases)])


def _run(found: Any) -> Run:
    results = {k.removeprefix("result."): v for k, v in found.data.metrics.items() if k.startswith("result.")}
    return Run(found.info.run_id, found.info.run_name or "", dict(found.data.tags), results, found.info.start_time or 0)


def computed(stages: Sequence[Stage]) -> list[list[Run]]:
    """For each stage the runs that computed exactly its outs, newest first."""
    with store() as (client, experiment):
        return [[_run(found) for found in runs_that_made(client, experiment, stage)] for stage in stages]


def last(stages: Collection[str]) -> dict[str, Run]:
    """The newest run of each stage that ended well, whatever it wrote."""
    found: dict[str, Run] = {}
    with store() as (client, experiment):
        for name in stages:
            query = f"tags.`pruneonce.stage` = '{name}' and attributes.status = 'FINISHED'"
            for run in client.search_runs([experiment], query, max_results=1, order_by=["start_time DESC"]):
                found[name] = _run(run)
    return found


def beginning(prefix: str) -> list[Run]:
    """The runs of our experiment whose id begins so."""
    with store() as (client, experiment):
        if re.fullmatch("[0-9a-f]{32}", prefix):
            try:
                return [_run(client.get_run(prefix))]
            except Exception as error:
                if refused(error):
                    return []
                raise
        query = f"attributes.run_id LIKE '{prefix}%'"
        return [_run(run) for run in _every(client.search_runs, [experiment], query, order_by=["start_time DESC"])]


def children(run_id: str) -> list[Run]:
    """The runs of a flow's stages, oldest first."""
    with store() as (client, experiment):
        query = f"tags.`mlflow.parentRunId` = '{run_id}'"
        return [_run(run) for run in _every(client.search_runs, [experiment], query, order_by=["start_time ASC"])]


def registered(model: str, version: str) -> Registered | None:
    """A version by its number or by `@alias`; None if the registry has none such."""
    with store() as (client, _):
        try:
            if version.startswith("@"):
                found = client.get_model_version_by_alias(model, version[1:])
            else:
                found = client.get_model_version(model, version)
        except Exception as error:
            if refused(error):
                return None
            raise
        return _registered(client, found)


def download(version: Registered, folder: Path) -> Path:
    """The files of a registered version, in `folder` or where MLflow keeps them. Returns the folder of its model."""
    with store():
        place = f"models:/{version.model}/{version.version}"
        return Path(artifacts.download_artifacts(artifact_uri=place, dst_path=str(folder), tracking_uri=mlflow_uri()))


def models() -> list[str]:
    """The names of the registered models."""
    with store() as (client, _):
        return sorted(model.name for model in _every(client.search_registered_models))


def versions_of(md5s: Collection[str]) -> list[Registered]:
    """The registered versions of files with these md5s."""
    with store() as (client, _):
        found = (version for md5 in sorted(set(md5s)) for version in _versions(client, f"tags.md5 = '{md5}'"))
        return [_registered(client, version) for version in found]


def tagged(prefix: str) -> list[Registered]:
    """The registered versions of files whose md5 begins so."""
    with store() as (client, _):
        return [_registered(client, version) for version in _versions(client, f"tags.md5 LIKE '{prefix}%'")]


def _versions(client: MlflowClient, query: str) -> Iterator[Any]:
    return _every(client.search_model_versions, query)


def _every(search: Callable[..., Any], *asked: Any, **options: Any) -> Iterator[Any]:
    """All that a search finds, page by page."""
    page = search(*asked, max_results=PAGE, **options)
    yield from page
    while page.token:
        page = search(*asked, max_results=PAGE, page_token=page.token, **options)
        yield from page


def _registered(client: MlflowClient, found: Any) -> Registered:
    aliases = client.get_registered_model(found.name).aliases
    named = tuple(sorted(alias for alias, version in aliases.items() if str(version) == str(found.version)))
    return Registered(found.name, str(found.version), named, dict(found.tags), found.run_id or "")
