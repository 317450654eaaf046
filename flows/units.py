"""A unit of work for another machine: stages in order, and all that its checkout needs to compute them."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dvc.dependency.param import ParamsDependency
from dvc.output import Output
from dvc.repo import Repo

from flows.repro import Outcome
from pipeline.hashing import file_md5
from pipeline.tracking.lock import meet
from pruneonce.errors import DataError, PipelineError, plain

LOCK, PARAMS = Path("dvc.lock"), Path("params.yaml")
KERNELS = Path("pruneonce/deployment/kernels.so")  # git does not have it; with it `evaluate` measures one more variant
# Of a result of a stage, as `branch.result` makes it: the fields that are read, and what they are.
FIELDS = {"entry": dict, "files": dict, "result": str, "why": str, "seconds": int | float, "where": str}
# Of a remote's settings in DVC: how to reach it. Keys and passwords are each machine's own.
REMOTE = ("url", "endpointurl", "region", "use_ssl", "ssl_verify", "version_aware")


@dataclass(frozen=True)
class RanOn(Outcome):
    """The outcome of a stage on another machine. where: the name of its worker."""

    where: str


@dataclass(frozen=True)
class Team:
    """What all units of a run share.

    commit, repository: of the code. remote: DVC's settings of the remote, None if all machines share the cache.
    kernels: whether the coordinator has the library of the sparse kernels.
    """

    commit: str
    repository: str
    remote: Mapping[str, Any] | None
    kernels: bool


@dataclass(frozen=True)
class Unit:
    """stages: in order. key: a digest of all that determines their outs. parent: the MLflow run above their runs.

    params, lock: the texts of params.yaml and dvc.lock. files: path -> text, of the small files that git keeps.
    """

    name: str
    stages: list[str]
    key: str
    parent: str
    params: str
    lock: str
    files: dict[str, str]
    team: Team

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, given: Mapping[str, Any]) -> "Unit":
        """Raises PipelineError if it was written by another version of this code."""
        try:
            return cls(**{**given, "team": Team(**given["team"])})
        except (KeyError, TypeError) as error:
            raise PipelineError(
                f"expected a unit of work as this commit writes it, found another ({error}). Deploy and run one commit."
            ) from None


def unit(repo: Repo, name: str, stages: list[str], *, parent: str, team: Team) -> Unit:
    """The unit of these stages, as the folder is now. The stages that they read must be up to date."""
    small = [out for out in [*reads(repo, stages), *_outs(repo, stages)] if not out.use_cache]
    return Unit(
        name,
        stages,
        key(repo, stages),
        parent,
        PARAMS.read_text(encoding="utf-8"),
        LOCK.read_text(encoding="utf-8") if LOCK.exists() else "",
        {path_of(out): Path(path_of(out)).read_text(encoding="utf-8") for out in small if _as_recorded(out)},
        team,
    )


def key(repo: Repo, stages: list[str]) -> str:
    """A digest of all that determines the outs of these stages: commands, parameters, code, the outs that they read."""
    anyones = [out.fs_path for stage in repo.index.stages for out in stage.outs]
    facts: list[Any] = [sorted([path_of(out), out.hash_info.value] for out in reads(repo, stages))]
    for stage in _collected(repo, stages):
        given = {
            dep.def_path: dep.get_hash().value
            for dep in stage.deps
            if isinstance(dep, ParamsDependency) or not any(meet(path, dep.fs_path) for path in anyones)
        }
        facts.append([stage.addressing, stage.cmd, given])
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def reads(repo: Repo, stages: list[str]) -> list[Output]:
    """The outs of other stages that these stages read."""
    deps = {dep.fs_path for stage in _collected(repo, stages) for dep in stage.deps}
    others = (stage for stage in repo.index.stages if stage.addressing not in stages)
    return [out for stage in others for out in stage.outs if any(meet(out.fs_path, path) for path in deps)]


def remote_of(repo: Repo) -> dict[str, Any] | None:
    """How to reach DVC's default remote, without keys and passwords; None if there is none."""
    name = repo.config["core"].get("remote")
    if not name:
        return None
    settings = {option: value for option, value in repo.config["remote"][name].items() if option in REMOTE}
    url = str(settings["url"])
    # An address with a password stays where it is: each machine must have it.
    return {"name": name, **({**settings, "url": url} if plain(url) == url else {})}


def path_of(out: Output) -> str:
    """The path of an out from the repository's root, which is the working folder."""
    return os.path.relpath(out.fs_path)


def size(outs: Iterable[Output]) -> int:
    """Bytes of the outs, as dvc.lock has them."""
    return sum((out.meta.size or 0) if out.meta else 0 for out in outs)


def recorded(stage: str, result: Mapping[str, Any]) -> dict[str, str]:
    """Path -> md5 of the outs in the result of a stage. Raises DataError if it is not what a worker writes."""
    try:
        wrong = [name for name, kind in FIELDS.items() if not isinstance(result.get(name), kind)]
        found = {} if wrong else {str(out["path"]): str(out["md5"]) for out in result["entry"]["outs"]}
    except (KeyError, TypeError):
        wrong = ["entry"]
    if wrong:
        raise DataError(
            f"expected a result of {stage} as a worker of this commit writes it, found another {', '.join(wrong)}. It may "
            "be damaged, or of another version. Run again."
        )
    return found


def check_text(path: str, text: str, md5: str, where: str) -> None:
    """Raises DataError unless the text has this md5."""
    found = hashlib.md5(text.encode()).hexdigest()
    if found != md5:
        raise DataError(f"expected {path} with md5 {md5}, as its dvc.lock says, found {found} from {where}. Run again.")


def _as_recorded(out: Output) -> bool:
    path = Path(path_of(out))
    return path.is_file() and bool(out.hash_info) and file_md5(path) == out.hash_info.value


def _outs(repo: Repo, stages: list[str]) -> list[Output]:
    return [out for stage in _collected(repo, stages) for out in stage.outs]


def _collected(repo: Repo, stages: list[str]) -> list[Any]:
    return [found for stage in stages for found in repo.stage.collect(stage)]
