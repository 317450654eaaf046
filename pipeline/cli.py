"""The commands of `pruneonce` in a project's folder: what a profile costs; where a file came from, back to the sources."""

import argparse
import math
import os
import re
import reprlib
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from pipeline import lineage
from pipeline.lineage import Stage
from pruneonce.errors import DataError, TrackerUnreachable
from pruneonce.terminal import flushed_output, one_line_errors


def main() -> None:
    """The command line. Every error a user can meet ends in one line and exit code 1."""
    with flushed_output(), one_line_errors():
        for line in _lines(_parser().parse_args()):
            print(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pruneonce", description="Compressed models: what they cost, and where they came from."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("plan", help="check a profile and print what it would cost, without training")
    command.add_argument(
        "profile", nargs="?", help="a file of profiles/ without its suffix; default: params.yaml as it stands"
    )
    command.add_argument("--gpus", type=_count, default=1, help="that share the work (1)")
    speed = command.add_mutually_exclusive_group()
    speed.add_argument("--tflops", type=_speed, help="model TFLOP/s that one GPU sustains")
    speed.add_argument("--tokens-per-second", type=_speed, help="of training, on one GPU")
    command = commands.add_parser("trace", help="print the stages, md5s, parameters and MLflow runs behind a file")
    command.add_argument("file", type=_path, help="an exported model, here or copied elsewhere, or any DVC-tracked out")
    commands.add_parser("seal", help="bring MLflow to what dvc.lock says: md5s into its runs, shipped models registered")
    return parser


MOST_GPUS, LEAST_SPEED, MOST_SPEED = 1_000_000, 1e-6, 1e12


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= MOST_GPUS:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {MOST_GPUS}, found {reprlib.repr(text)}")
    return int(text)


def _speed(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not LEAST_SPEED <= found <= MOST_SPEED:  # nor nan
        raise argparse.ArgumentTypeError(
            f"expected a number from {LEAST_SPEED:g} to {MOST_SPEED:g}, found {reprlib.repr(text)}"
        )
    return found


def _path(text: str) -> Path:
    if not text or "\0" in text:  # Path("") would be this folder
        raise argparse.ArgumentTypeError(f"expected the name of a file, found {reprlib.repr(text)}")
    return Path(text)


def _lines(args: argparse.Namespace) -> Iterable[str]:
    """Do what was asked and say what was done."""
    if args.command == "plan":
        from pipeline.plan import costs, page  # import torch, which takes seconds

        return list(page.lines(args.profile, costs.Rate(args.gpus, args.tflops, args.tokens_per_second)))
    if args.command == "trace":
        return list(trace(args.file))  # all of it, or an error
    return _seal()


def _seal() -> Iterator[str]:
    """What was done, a line each. What a flow only says ends the command: to do this is all that it was started for."""
    failed: list[str] = []
    for step in (lineage.close_lost, lineage.seal, lineage.register):
        yield from step(failed.append)
        if failed:
            sys.exit(failed[0])


def trace(file: Path) -> Iterator[str]:
    """The tree of stages behind `file`, a line at a time: it stands first, its sources last.

    The file is found by its path, or, if it was copied elsewhere, by its md5.
    Raises DataError for a file that no stage of dvc.lock wrote, or whose content is not what was recorded.
    """
    if file.exists() and not file.is_file() and not file.is_dir():
        raise DataError(f"expected a file at {file}, found a device or a pipe. It is not read.")
    if file.is_dir() and Path.cwd().is_relative_to(file.resolve()):  # else all of the disk would be read, for `/`
        raise DataError(f"expected a file or an out, found {file}, the folder that this project lies in.")
    lineage.seal()
    stages = lineage.locked()
    now = set(lineage.current())
    outs = {path: md5 for stage in sorted(stages.values(), key=lambda s: s.name in now) for path, md5 in stage.outs.items()}
    path, md5 = _identify(file, outs)
    yield f"{file}  md5 {md5}"
    tree = _Tree(stages, now)
    for stage in lineage.makers(path, outs[path], stages, now):
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
    md5 = lineage.file_md5(file)
    if known in outs:
        if outs[known] != md5:
            raise DataError(
                f"expected {file} with md5 {outs[known]} as dvc.lock has it, found {md5}: it was changed since. "
                f"Get it back with: dvc checkout {known}"
            )
        return known, md5
    inside = [path for path in outs if known.startswith(f"{path}/")]
    for path in inside:
        if lineage.file_md5(Path(path)) != outs[path]:
            raise DataError(
                f"expected {path}, in which {file} lies, with md5 {outs[path]} as dvc.lock has it, found another: it was "
                f"changed since. Get it back with: dvc checkout {path}"
            )
    same = [path for path, recorded in outs.items() if recorded == md5]
    if inside or same:
        return (inside or same)[0], md5
    raise DataError(f"expected a file that a stage of dvc.lock wrote, found md5 {md5}, which none did.")


def _known(file: Path, outs: Mapping[str, str]) -> str:
    """The path from here, if it is an out's or lies in one: as it is named, for DVC may link an out to its cache; else
    where its links lead. As it was given if neither does."""
    beside = os.path.join(os.path.realpath(file.parent), file.name)  # the folder's links alone are followed
    for path in map(Path, (os.path.abspath(file), beside, os.path.realpath(file))):  # none raises for a loop of links
        if path.is_relative_to(Path.cwd()):
            known = path.relative_to(Path.cwd()).as_posix()
            if any(known == out or known.startswith(f"{out}/") for out in outs):
                return known
    return str(file)


class _Tree:
    """The lines behind a stage. A stage that stands above is not told twice; a tracker that failed is not asked twice."""

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
            made = lineage.makers(path, md5, self.stages, self.now)
            below |= {s.name: s for s in made if s.name != stage.name}
            if not made and any(path in s.outs for s in self.stages.values()):
                yield f"{inner}        made by a run that dvc.lock does not have any more: it was computed again since"
        for name in sorted(below):
            yield from self.lines(below[name], inner)

    def runs(self, stage: Stage) -> str:
        """The MLflow runs that computed the stage's outs, also if they were restored from the cache since."""
        from pipeline import tracking  # imports MLflow, which takes seconds

        if self.unknown:
            return "unknown: as above"
        try:
            runs = tracking.runs_of(stage)
        except TrackerUnreachable as error:
            self.unknown = f"unknown: {error}"
            return self.unknown
        return ", ".join(runs) if runs else f"none in {tracking.shown()}: computed elsewhere, or its run was deleted"


if __name__ == "__main__":
    main()
