"""What DVC recorded, read back: md5s as DVC counts them, dvc.lock and study/dvc.lock as a graph, the sealing of MLflow runs.

A stage writes the md5s of its outs into its MLflow run as it ends. dvc.lock is written after that, so it leaves them in
`.pruneonce/unsealed/` too; once DVC has recorded the same ones, `seal` says so in the run. The flow seals after every
stage. Under a plain `dvc repro` one process of ours waits for DVC to end, and seals then. What runs in a copy of the
project that `dvc exp run` made is tracked by the project itself.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import posixpath
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline import ignored
from pipeline.params.reading import read_yaml
from pruneonce.errors import ConfigError, PruneOnceError, TrackerUnreachable, plain

EXPERIMENTS = Path(".dvc/tmp/exps")  # where `dvc exp run --temp` and `--queue` make their copies, and remove them
LOCKS = (Path("dvc.lock"), Path("study/dvc.lock"))  # of the two DVC projects; no stage name stands in both
UNSEALED = Path(".pruneonce/unsealed")
IN_FLOW = "PRUNEONCE_IN_FLOW"  # set by the flow: a file to touch, so that it knows the stage ran. The flow seals.


@dataclass(frozen=True)
class Stage:
    """One entry of a lock file. deps, outs: path from the repository's root -> md5. params: dotted key -> value."""

    name: str
    deps: dict[str, str]
    outs: dict[str, str]
    params: dict[str, Any]


def home() -> Path:
    """The project that this folder belongs to: of a copy that `dvc exp run` made inside it, the original; else this one."""
    here = Path.cwd()
    return next((folder for folder in here.parents if folder / EXPERIMENTS in here.parents), here)


def locked(root: Path = Path()) -> dict[str, Stage]:
    """The stages of the lock files by name; empty if nothing was run yet. Raises ConfigError for a file that is none."""
    stages: dict[str, Stage] = {}
    for path in LOCKS:
        with _of_dvc(root / path) as document:
            stages |= {name: _stage(name, entry, path.parent) for name, entry in document.get("stages", {}).items()}
    return stages


@contextlib.contextmanager
def _of_dvc(path: Path) -> Iterator[dict[str, Any]]:
    """A file of DVC's to read from; empty if there is none. Raises ConfigError where it is not built as DVC builds it."""
    try:
        yield (read_yaml(path) or {}) if path.exists() else {}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"expected stages as DVC has them in {path}, found another structure ({type(error).__name__}: {error}). What "
            f"git has of it comes back with: git checkout -- {path}"
        ) from None


def _stage(name: str, entry: Mapping[str, Any], folder: Path) -> Stage:
    """An entry of the lock file in `folder`, whose paths begin there."""

    def md5s(kind: str) -> dict[str, str]:
        return {posixpath.normpath(folder / each["path"]): each.get("md5", "") for each in entry.get(kind, [])}

    values = {key: value for file in entry.get("params", {}).values() for key, value in file.items()}
    return Stage(name, md5s("deps"), md5s("outs"), values)


def current(root: Path = Path()) -> dict[str, Stage]:
    """Of the stages of the lock files those that dvc.yaml has now, with the tasks and sources of params.yaml.

    The others are what former profiles left: DVC keeps their entries.
    """
    values = read_yaml(root / "params.yaml") if (root / "params.yaml").exists() else {}
    names: set[str] = set()
    for path in LOCKS:
        with _of_dvc(root / path.with_suffix(".yaml")) as document:
            blocks = document.get("stages", {}).items()
            names |= {name for stage, block in blocks for name in _names(stage, block, values or {})}
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


def project(stage: str) -> Path:
    """The folder of the DVC project that a stage is of, by its name or as DVC calls it from here."""
    study = LOCKS[1].with_suffix(".yaml")
    with _of_dvc(study) as document:
        return LOCKS[_name(stage).partition("@")[0] in document.get("stages", {})].parent


def _name(stage: str) -> str:
    """study_dense@r8 of study/dvc.yaml:study_dense@r8."""
    return stage.rpartition(":")[2]


def command(verb: str, *stages: str) -> str:
    """A command of DVC on stages, as it is typed in the repository's root."""
    by_project: dict[Path, list[str]] = {}
    for stage in stages:
        by_project.setdefault(project(stage), []).append(_name(stage))
    return " && ".join(
        f"dvc {'' if folder == Path() else f'--cd {folder} '}{verb} {shlex.join(names)}"
        for folder, names in sorted(by_project.items())
    )


def file_md5(path: Path) -> str:
    """md5 of a file, or of a folder's listing with the suffix `.dir`: the names DVC gives them."""
    if path.is_dir():
        return listing_md5({p.relative_to(path).as_posix(): file_md5(p) for p in ignored.files(path)})
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def listing_md5(files: Mapping[str, str]) -> str:
    """What DVC calls a folder. files: path in it -> md5."""
    listing = [{"md5": md5, "relpath": name} for name, md5 in sorted(files.items())]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def producers(path: str, stages: Mapping[str, Stage]) -> Iterator[Stage]:
    """The stages that write `path`, the folder it lies in, or something inside it."""
    for stage in stages.values():
        if any(o == path or path.startswith(f"{o}/") or o.startswith(f"{path}/") for o in stage.outs):
            yield stage


def makers(path: str, md5: str, stages: Mapping[str, Stage], now: Collection[str]) -> list[Stage]:
    """The stages that made what a stage read at `path`, with this md5.

    now: names of the stages that there are. An entry that a former profile left in dvc.lock has made a file only if it
    wrote these very bytes, and none of them has a part in a folder that several stages write into.
    """
    found = list(producers(path, stages))
    same = [stage for stage in found if stage.outs.get(path) == md5]
    inside = [stage for stage in found if path not in stage.outs and stage.name in now]
    return [stage for stage in same if stage.name in now] or same or inside


def leave_for_sealing(run_id: str, outs: Mapping[str, str]) -> None:
    """Called by a stage when its work is done; outs: path -> md5 of what it wrote.

    What goes wrong here is said, not raised: the work stands without it.
    """
    try:
        if mark := os.environ.get(IN_FLOW):
            Path(mark).touch()
        unsealed = home() / UNSEALED
        unsealed.mkdir(parents=True, exist_ok=True)
        (unsealed / run_id).write_text(json.dumps(dict(outs)))
        if not mark and home() == Path.cwd() and (dvc := _dvc_ancestor()) is not None:
            command = [sys.executable, "-m", "pipeline.lineage", str(dvc)]
            with (UNSEALED.parent / "seal.log").open("a") as log:
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    except (OSError, psutil.Error) as error:
        print(
            f"\nMLflow's run {run_id} was not handed over for sealing ({type(error).__name__}: {plain(error)}); the stage's "
            "outs are not affected. To try what can be sealed: pruneonce seal",
            file=sys.stderr,
        )


def _dvc_ancestor() -> int | None:
    """The process that runs `dvc repro`, if this stage was started by one."""
    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):  # of another user, or gone: not ours
            if any(Path(part).name in ("dvc", "dvc.exe") for part in process.cmdline()[:3]):
                return process.pid
    return None


def _say(line: str) -> None:
    print(f"\n{line}", file=sys.stderr)


def seal(say: Callable[[str], None] = _say) -> list[str]:
    """Say in every finished run that waits for it that DVC recorded the same outs. Returns the names of its stages.

    What fails is said, not raised: what was computed stands, and the runs go on waiting.
    """
    unsealed, sealed = home() / UNSEALED, list[str]()
    if not unsealed.is_dir() or not (waiting := sorted(unsealed.iterdir())):
        return []
    from pipeline import tracking  # imports MLflow, which takes seconds

    try:
        stages = locked()
        for path in waiting:
            if name := tracking.seal(path.name, _made(path), stages):
                sealed.append(name)
            path.unlink(missing_ok=True)
    except (PruneOnceError, OSError) as error:
        say(f"Not all runs were sealed: {plain(error)} Later: pruneonce seal")
    return sealed


def _made(path: Path) -> dict[str, str]:
    """What a stage left for sealing: path -> md5 of its outs; empty if it was cut short."""
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        return {}


def register(say: Callable[[str], None] = _say) -> list[str]:
    """Bring MLflow's model registry to what dvc.lock says of the tasks of params.yaml. Returns what changed there, a line
    each. What fails is said, not raised."""
    from pipeline import registry  # imports MLflow, which takes seconds

    try:
        return registry.register(current())
    except PruneOnceError as error:
        say(f"The models were not registered ({error}). Try again with: pruneonce seal")
        return []


def close_lost(say: Callable[[str], None] = _say) -> list[str]:
    """Close the runs of this machine's processes that are gone. Returns a line for each. What fails is said, not raised."""
    from pipeline import tracking  # imports MLflow, which takes seconds

    try:
        return [f"{name}: its process is gone, so its run is closed as KILLED" for name in tracking.close_lost()]
    except TrackerUnreachable as error:
        say(f"Runs of lost processes were not closed: {error}")
        return []


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
