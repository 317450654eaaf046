"""Whether the models of dvc.lock are made from what git has. Only then may an alias of the registry move to them.

An experiment, edits that no commit has, or another profile than the committed one make models too. They are registered, for
comparisons, and no alias follows them.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline import git
from pipeline.hashing import file_md5
from pipeline.params import profiles
from pipeline.params.reading import read_yaml
from pipeline.tracking import lock
from pipeline.tracking.address import home
from pipeline.tracking.lock import Stage
from pruneonce.errors import PipelineError

EXPERIMENT = "DVC_EXP_NAME"  # `dvc exp run` sets it for its commands
# A run writes these; of study/, what the studies write beside their code.
WRITTEN = ("dvc.lock", "data", "study/**/dvc.lock", *(f"study/**/*.{kind}" for kind in ("json", "csv", "svg", "md")))
APART = ("docs", "tests", "*.md")  # no stage reads these: folders, and pages in the root
FIRST = ("params.yaml", "dvc.lock", "dvc.yaml")  # in messages
SHOWN = 3  # names of files in a message


def head() -> str:
    """The commit that is checked out; empty if there is none."""
    return git.said("rev-parse", "HEAD") or ""


def edited(*, runs: bool = False) -> list[str]:
    """The tracked files that differ from the commit. runs: all of them, also those that a run itself writes, and pages."""
    without = [] if runs else [f":(exclude,glob){path}" for path in (*WRITTEN, *APART)]
    found = git.lines("diff", "--name-only", "--relative", "HEAD", "--", ".", *without)
    return sorted(found, key=lambda path: (path not in FIRST, path))


def experiment() -> str:
    """The experiment of `dvc exp run` that this process belongs to; empty if it is none."""
    if home() != Path.cwd():
        return os.environ.get(EXPERIMENT) or Path.cwd().name
    return os.environ.get(EXPERIMENT, "")


def profile() -> str:
    """Where params.yaml comes from: `from profiles/tiny.yaml`, `with overrides: ...`, as its first line says, or `own`."""
    text = profiles.current()
    first = text.partition("\n")[0]
    if first.startswith(profiles.MARK):
        return first.removeprefix(profiles.MARK).rpartition(" (")[0]
    same = [path for path in sorted(profiles.FOLDER.glob("*.yaml")) if path.read_text("utf-8", "replace") == text]
    return f"from {same[0]}" if same else "own"


def obstacle(stages: Mapping[str, Stage], task: str, *, runs: bool = False) -> str:
    """Why no alias may move to the models of this task, as the end of a sentence; empty if it may.

    runs: what a run itself writes must be in the commit too, dvc.lock first of all.
    """
    if name := experiment():
        return f"this is the experiment {name} of `dvc exp run`. Bring it into the project with: dvc exp apply {name}"
    if not head():
        return "git has no commit of this folder"
    changed = edited(runs=runs)
    if "params.yaml" in changed and profile() != "own":
        return f"params.yaml is not the committed one, but {profile()}. Commit it, or: git checkout params.yaml"
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        return f"{', '.join(changed[:SHOWN])}{more} differ from the commit {head()[:8]}. Commit them first"
    return next(stale(stages, task), "")


def check(stages: Mapping[str, Stage], task: str) -> None:
    """Raises PipelineError unless the models of this task are in a commit with all that they were made from."""
    if why := obstacle(stages, task, runs=True):
        raise PipelineError(
            f"expected a model of {task} that is made from what git has, found: {why}; then promote it again."
        )


def lineage(stages: Mapping[str, Stage], name: str) -> list[Stage]:
    """A stage and all those it reads from, each once."""
    found: dict[str, Stage] = {}
    waiting = [name] if name in stages else []
    while waiting:
        stage = found.setdefault(waiting[-1], stages[waiting.pop()])
        makers = {made.name for path in stage.deps for made in lock.producers(path, stages)}
        waiting += sorted(makers - set(found))
    return list(found.values())


def stale(stages: Mapping[str, Stage], task: str) -> Iterator[str]:
    """What dvc.lock was made with and is not here now: after a run of other values, params.yaml may have been reset."""
    values = read_yaml(profiles.PARAMS)
    new = git.lines("ls-files", "--others", "--exclude-standard")
    seen: dict[str, str] = {}
    for stage in lineage(stages, f"evaluate@{task}"):
        for key, value in stage.params.items():
            if _value(values, key) != value:
                yield f"{key} of params.yaml is not what {stage.name} in dvc.lock was made with. Run again: pruneonce run"
        for path, md5 in stage.deps.items():
            if lock.producers(path, stages):
                made = {maker.outs[path] for maker in stages.values() if path in maker.outs}
                if made and md5 not in made:
                    yield f"{stage.name} in dvc.lock was made with another {path}. Run again: pruneonce run"
            elif seen.setdefault(path, file_md5(Path(path)) if Path(path).exists() else "") != md5:
                yield f"{path} is not what {stage.name} in dvc.lock was made with. Run again: pruneonce run"
            elif not stage.name.startswith("fetch_local@"):  # which reads a file of the user's, of which DVC keeps a copy
                yield from (
                    f"{file}, which {stage.name} reads, is in no commit. Commit it first"
                    for file in new
                    if lock.meet(file, path)
                )


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values
