"""Where a file came from: the stages, md5s, parameters and MLflow runs behind it, back to the sources."""

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from pipeline.hashing import file_md5
from pipeline.tracking.address import shown
from pipeline.tracking.lock import Stage, current, locked, makers
from pruneonce.errors import DataError, TrackerUnreachable


def lines(file: Path) -> Iterator[str]:
    """The tree of stages behind `file` as lines: the file first, its sources last.

    The file is found by its path, or by its md5 if it was copied elsewhere.
    Raises DataError for a file that no stage of dvc.lock wrote, or that was changed since.
    """
    if file.exists() and not file.is_file() and not file.is_dir():
        raise DataError(f"expected a file at {file}, found a device or a pipe. It is not read.")
    if file.is_dir() and Path.cwd().is_relative_to(file.resolve()):  # for `/` the whole disk would be read
        raise DataError(f"expected a file or an out, found {file}, the folder that this project lies in.")
    stages, now = locked(), set(current())
    outs = {path: md5 for stage in sorted(stages.values(), key=lambda s: s.name in now) for path, md5 in stage.outs.items()}
    path, md5 = _identify(file, outs)
    yield f"{file}  md5 {md5}"
    tree = _Tree(stages, now)
    for stage in makers(path, outs[path], stages, now):
        yield from tree.lines(stage, "")


def _identify(file: Path, outs: Mapping[str, str]) -> tuple[str, str]:
    """(path as dvc.lock has it, md5) of the out that `file` is, or of the one it lies in. outs: path -> md5."""
    if not outs:
        raise DataError("expected stages in dvc.lock, found none. Run the pipeline first, in this folder.")
    known = _known(file, outs)
    if not file.exists():
        if known in outs:  # not checked out, but recorded
            return known, outs[known]
        raise DataError(f"expected a file at {file}, found none. Outs are e.g. {', '.join(sorted(outs)[:8])}.")
    md5 = file_md5(file)
    if known in outs:
        if outs[known] != md5:
            raise DataError(
                f"expected {file} with md5 {outs[known]} as dvc.lock has it, found {md5}: it was changed since. "
                f"Get it back with: dvc checkout {known}"
            )
        return known, md5
    inside = [path for path in outs if known.startswith(f"{path}/")]
    for path in inside:
        if file_md5(Path(path)) != outs[path]:
            raise DataError(
                f"expected {path}, in which {file} lies, with md5 {outs[path]} as dvc.lock has it, found another: it was "
                f"changed since. Get it back with: dvc checkout {path}"
            )
    same = [path for path, recorded in outs.items() if recorded == md5]
    if inside or same:
        return (inside or same)[0], md5
    raise DataError(f"expected a file that a stage of dvc.lock wrote, found md5 {md5}, which no stage did.")


def _known(file: Path, outs: Mapping[str, str]) -> str:
    """The file's path from here if it is an out or lies in one; else its unchanged name.

    Its own name comes first, because DVC may link an out to its cache; then the path that its links lead to.
    """
    beside = os.path.join(os.path.realpath(file.parent), file.name)  # the folder's links alone are followed
    for path in map(Path, (os.path.abspath(file), beside, os.path.realpath(file))):  # none raises for a loop of links
        if path.is_relative_to(Path.cwd()):
            known = path.relative_to(Path.cwd()).as_posix()
            if any(Path(known).is_relative_to(out) for out in outs):
                return known
    return str(file)


class _Tree:
    """The lines behind a stage. A stage is printed once; a tracker that failed is not asked again."""

    def __init__(self, stages: Mapping[str, Stage], now: Collection[str]):
        self.stages, self.now, self.seen, self.unknown = stages, now, set[str](), ""

    def lines(self, stage: Stage, indent: str) -> Iterator[str]:
        if stage.name in self.seen:
            yield f"{indent}└─ {stage.name}  (above)"
            return
        self.seen.add(stage.name)
        yield f"{indent}└─ {stage.name}"
        inner = indent + "   "
        yield f"{inner}run     {self.runs(stage)}"
        for path, md5 in stage.outs.items():
            yield f"{inner}out     {path}  {md5}"
        for key, value in sorted(stage.params.items()):
            yield f"{inner}params  {key}: {value}"
        below: dict[str, Stage] = {}
        for path, md5 in stage.deps.items():
            kind = "code  " if path.endswith(".py") else "dep   "
            yield f"{inner}{kind}  {path}  {md5}"
            writers = makers(path, md5, self.stages, self.now)
            below |= {s.name: s for s in writers if s.name != stage.name}
            if not writers and any(path in s.outs for s in self.stages.values()):
                yield f"{inner}        made by a run that dvc.lock does not have any more: it was computed again since"
        for name in sorted(below):
            yield from self.lines(below[name], inner)

    def runs(self, stage: Stage) -> str:
        """The MLflow runs that computed the stage's outs, also if the outs were restored from the cache since."""
        from pipeline.tracking import runs  # imports MLflow, which takes seconds

        if self.unknown:
            return "unknown: as above"
        try:
            ids = runs.runs_of(stage)
        except TrackerUnreachable as error:
            self.unknown = f"unknown: {error}"
            return self.unknown
        return ", ".join(ids) if ids else f"none in {shown()}: computed elsewhere, or its run was deleted"
