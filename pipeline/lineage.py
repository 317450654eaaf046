"""What DVC recorded, read back: md5s as DVC counts them, dvc.lock and study/dvc.lock as a graph, the sealing of MLflow runs.

dvc.lock is written after a stage's command has ended, so a stage cannot record its own outs. It leaves the id of its
MLflow run in `.pruneonce/unsealed/`; once DVC has recorded the outs, `seal` writes their md5s into that run. The flow
seals after every stage. Under a plain `dvc repro` one process of ours waits for DVC to end, and seals then.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline import params
from pruneonce.errors import TrackerUnreachable

LOCKS = (Path("dvc.lock"), Path("study/dvc.lock"))  # the pipeline's and the study's; no stage name stands in both
UNSEALED = Path(".pruneonce/unsealed")
IN_FLOW = "PRUNEONCE_IN_FLOW"  # set by the flow: a file to touch, so that it knows the stage ran. The flow seals.


@dataclass(frozen=True)
class Stage:
    """One entry of dvc.lock. deps, outs: path -> md5. params: dotted key -> value."""

    name: str
    deps: dict[str, str]
    outs: dict[str, str]
    params: dict[str, Any]


def locked(root: Path = Path()) -> dict[str, Stage]:
    """The stages of the lock files by name; empty if nothing was run yet."""
    documents = [params.read_yaml(root / path) or {} for path in LOCKS if (root / path).exists()]
    return {
        name: Stage(
            name,
            {d["path"]: d.get("md5", "") for d in entry.get("deps", [])},
            {o["path"]: o.get("md5", "") for o in entry.get("outs", [])},
            entry.get("params", {}).get("params.yaml", {}),
        )
        for document in documents
        for name, entry in document.get("stages", {}).items()
    }


def current(root: Path = Path()) -> dict[str, Stage]:
    """Of the stages of the lock files those that dvc.yaml has now, with the tasks and sources of params.yaml.

    The others are what former profiles left: DVC keeps their entries.
    """
    values = params.read_yaml(root / "params.yaml") if (root / "params.yaml").exists() else {}
    files = [root / path.with_suffix(".yaml") for path in LOCKS]
    documents = [params.read_yaml(path) or {} for path in files if path.exists()]
    blocks = [entry for document in documents for entry in document.get("stages", {}).items()]
    names = {name for stage, block in blocks for name in _names(stage, block, values or {})}
    return {name: stage for name, stage in locked(root).items() if name in names}


def _names(name: str, block: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    """What DVC calls the stages of one block of dvc.yaml: `name`, or `name@item` for each item of foreach or matrix."""

    def found(data: Any) -> Any:
        """A list or mapping as it stands, or the one that `${key.of.params}` names; empty if there is none."""
        if not isinstance(data, str):
            return data
        return functools.reduce(lambda level, key: level.get(key) or {}, data.strip("${} ").split("."), values)

    def text(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    if "matrix" in block:
        axes = [[text(value) for value in found(axis)] for axis in found(block["matrix"]).values()]
        yield from (f"{name}@{'-'.join(cell)}" for cell in itertools.product(*axes))
    elif "foreach" in block:
        yield from (f"{name}@{text(item)}" for item in found(block["foreach"]))
    else:
        yield name


def file_md5(path: Path) -> str:
    """md5 of a file, or of a folder's listing with the suffix `.dir`: the names DVC gives them."""
    if path.is_dir():
        return listing_md5({p.relative_to(path).as_posix(): file_md5(p) for p in path.rglob("*") if p.is_file()})
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def listing_md5(files: Mapping[str, str]) -> str:
    """What DVC calls a folder. files: path in it -> md5."""
    listing = [{"md5": md5, "relpath": name} for name, md5 in sorted(files.items())]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def producers(path: str, stages: dict[str, Stage]) -> Iterator[Stage]:
    """The stages that write `path`, the folder it lies in, or something inside it."""
    for stage in stages.values():
        if any(o == path or path.startswith(f"{o}/") or o.startswith(f"{path}/") for o in stage.outs):
            yield stage


def leave_for_sealing(run_id: str) -> None:
    """Called by a stage when its work is done. What goes wrong here is said, not raised: the work stands without it."""
    try:
        if mark := os.environ.get(IN_FLOW):
            Path(mark).touch()
        UNSEALED.mkdir(parents=True, exist_ok=True)
        (UNSEALED / run_id).touch()
        if not mark and (dvc := _dvc_ancestor()) is not None:
            log = (UNSEALED.parent / "seal.log").open("a")
            command = [sys.executable, "-m", "pipeline.lineage", str(dvc)]
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    except (OSError, psutil.Error) as error:
        print(
            f"\nMLflow's run {run_id} was not handed over for sealing ({type(error).__name__}: {error}); the stage's outs "
            "are not affected. To try what can be sealed: pruneonce seal",
            file=sys.stderr,
        )


def _dvc_ancestor() -> int | None:
    """The process that runs `dvc repro`, if this stage was started by one."""
    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):  # of another user, or gone: not ours
            if any(Path(part).name in ("dvc", "dvc.exe") for part in process.cmdline()[:3]):
                return process.pid
    return None


def seal() -> list[str]:
    """Write the md5s of dvc.lock into every finished run that waits for them. Returns the names of its stages.

    A tracker that is gone is said, not raised: what was computed stands, and the runs go on waiting.
    """
    waiting = sorted(UNSEALED.iterdir()) if UNSEALED.is_dir() else []
    if not waiting:
        return []
    from pipeline import tracking  # imports MLflow, which takes seconds

    stages, sealed = locked(), []
    for path in waiting:
        try:
            name = tracking.seal(path.name, stages)
        except TrackerUnreachable:
            print(f"\nMLflow at {tracking.uri()} does not answer; later: pruneonce seal", file=sys.stderr)
            break
        path.unlink(missing_ok=True)
        if name:
            sealed.append(name)
    return sealed


def register() -> list[str]:
    """Bring MLflow's model registry to what dvc.lock says. Returns what changed there, a line each."""
    from pipeline import registry  # imports MLflow, which takes seconds

    return registry.register(locked())


def _wait_and_seal(dvc: int) -> None:
    """Wait until the process `dvc` has ended, then seal. One waiter a process is enough; the others leave at once."""
    claim = UNSEALED.parent / f"sealer-{dvc}"
    try:
        claim.open("x").close()
    except FileExistsError:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(dvc).wait()
    claim.unlink(missing_ok=True)
    seal()
    register()


if __name__ == "__main__":
    _wait_and_seal(int(sys.argv[1]))
