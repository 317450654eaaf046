"""How a stage file becomes a command. A stage's signature is its contract with dvc.yaml.

`python -m stages.sparsify --teacher-folder data/... --metrics data/...`, with an option for each path of `run`, reads
params.yaml, opens an MLflow run, calls `run` once, and writes its metrics. Every expected error ends in one line and a
non-zero exit code.
`--set sparsify.sparsity=0.9` sets another value for this run alone, and `--part profiles/tasks/mnli.yaml` lays the sections
of a file over params.yaml. The studies run stages of the pipeline this way.
A stage that trains starts itself again under params.yaml's `launcher`. Under `torchrun -m stages.sparsify ...` every process
calls `run`; the first one tracks and writes, and the files of the others are deleted.
"""

import argparse
import contextlib
import gc
import hashlib
import inspect
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from pipeline import endings, integrity, processes, scratch
from pipeline.hashing import file_md5, hashes, known_md5
from pipeline.history import Log, Quiet
from pipeline.params.document import load
from pipeline.params.section import Section
from pipeline.stopping import RAN, Stop, stoppable
from pipeline.tracking import lock
from pipeline.tracking.lock import short
from pipeline.tracking.open_run import flatten
from pipeline.tracking.runs import stage_run
from pruneonce.errors import ConfigError, DataError, PruneOnceError, disk_is_full, system_failed

Dep = Annotated[Path, "dep"]  # a path the stage reads
Given = Annotated[Path, "given"]  # a path that params.yaml names under this key; it is not part of a command
Out = Annotated[Path, "out"]  # a path that this stage alone writes
Record = Annotated[Path, "record"]  # a small out, a metric or a plot's numbers: git keeps it, or DVC's cache
Item = Annotated[str, "item"]  # a value of dvc.yaml's foreach or matrix; the first one is a task or a source
Metrics = Mapping[str, Any]  # numbers by name; nested mappings are groups


@dataclass(frozen=True)
class Origin:
    """What a stage was given. deps: path -> md5, of its data. params: sha256 of its parameters.

    Not of its code: an out that holds that would change with every comment.
    """

    deps: Mapping[str, str]
    params: str


KINDS = {"dep": Dep, "given": Given, "out": Out, "record": Record, "item": Item}
LAUNCHED = "PRUNEONCE_LAUNCHED"  # set for the processes that the launcher starts


def contract(run: Callable[..., Metrics]) -> dict[str, list[str]]:
    """Parameter names of `run` by kind: dep, given, out, record, item, section, log, origin."""
    hints = get_type_hints(run, include_extras=True)
    hints.pop("return", None)
    named = {kind: [n for n, t in hints.items() if t == mark] for kind, mark in KINDS.items()}
    named["log"] = [n for n, t in hints.items() if t is Log]
    named["origin"] = [n for n, t in hints.items() if t is Origin]
    named["section"] = [n for n, t in hints.items() if all(_is_section(kind) for kind in get_args(t) or (t,))]
    return named


def _is_section(hint: object) -> bool:
    return inspect.isclass(hint) and issubclass(hint, Section)


def launch(run: Callable[..., Metrics]) -> None:
    """`main` under params.yaml's `launcher`: this process becomes the launcher, which starts the stage once more.

    Its words are arguments; no shell reads them.
    """
    if LAUNCHED not in os.environ and "LOCAL_RANK" not in os.environ:  # LOCAL_RANK: torchrun was called by hand
        stage = Path(inspect.getfile(run)).stem
        try:
            _become(load().launch_words, ["-m", f"stages.{stage}", *sys.argv[1:]])
        except PruneOnceError as error:
            sys.exit(f"\n{stage}: {type(error).__name__}: {error}")
    main(run)


def _become(launcher: Sequence[str], command: Sequence[str]) -> None:
    """Replace this process by the launcher; return if that is the python that runs already."""
    if list(launcher) == ["python"]:
        return
    os.environ[LAUNCHED] = "1"
    try:
        os.execvp(launcher[0], [*launcher, *command])
    except OSError as error:
        raise ConfigError(
            f"expected launcher in params.yaml to begin with a command, found {launcher[0]!r} ({error.strerror}). "
            "Set it to python, or to a launcher such as torchrun --nproc-per-node 8."
        ) from None


@endings.noted()
def main(run: Callable[..., Metrics]) -> None:
    """Run a stage from the command line.

    Exit codes: 0; 1 for an error with a message; 75 if memory or a disk was lost; 130 for Ctrl-C, 143 for SIGTERM.
    """
    stage = Path(inspect.getfile(run)).stem
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    processes.end_with_parent()
    gc.freeze()  # the imported modules stay: no collection needs to look at them again
    try:
        _main(run, stage)
    except PruneOnceError as error:
        sys.exit(f"\n{stage}: {type(error).__name__}: {error}")
    except KeyboardInterrupt:
        print(f"\n{stage}: stopped by Ctrl-C. Finished stages are kept; run again to go on.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if disk_is_full(error):
            sys.exit(f"\n{stage}: the disk is full ({error}). Finished stages are kept; free some space and run again.")
        if not system_failed(error):
            raise
        kept = "Finished stages and saved states are kept; run again to go on."
        print(f"\n{stage}: the system failed under it ({error or type(error).__name__}). {kept}", file=sys.stderr)
        sys.exit(endings.TEMPORARY)


def _main(run: Callable[..., Metrics], stage: str) -> None:
    names = contract(run)
    args = _arguments(run, names)
    items = [args[name] for name in names["item"]]
    loaded = load(changes=args.pop("set"), parts=args.pop("part"))
    sections = {name: loaded.section(name, next(iter(items), None)) for name in names["section"]}
    flat = flatten({name: section.model_dump() for name, section in sections.items()})
    flat |= {"pruneonce": loaded.pruneonce} if loaded.pruneonce else {}  # in place of the code's md5s
    name = _name(stage, items)
    args |= {name: Path(getattr(section, name)) for name in names["given"] for section in sections.values()}
    reads = [*names["dep"], *names["given"]]
    _check_deps([args[n] for n in names["dep"]], name)
    deps = _checked([args[n] for n in reads if args[n].exists()])  # of a missing `Given` path the stage says what is wrong
    code = {str(path): file_md5(path) for path in lock.code(name) if path.exists()}
    own = scratch.of(name, flat, deps | code)
    origin = Origin(deps, digest(flat))
    report = args.pop("metrics")
    made = [args[n] for n in (*names["out"], *names["record"])]

    def work(log: Log, **elsewhere: Path) -> Metrics:
        with stoppable(log.stop):
            given = dict.fromkeys(names["log"], log) | dict.fromkeys(names["origin"], origin)
            return run(**{**args, **elsewhere}, **sections, **given)

    stop, seconds = Stop(), loaded.machine.checkpoint_seconds
    if os.environ.get("RANK", "0") != "0":  # torchrun and accelerate number the processes of a launch
        with tempfile.TemporaryDirectory() as folder, _quiet_if_stopped(stop):
            work(
                Quiet(own, checkpoint_seconds=seconds, stop=stop),
                **{n: Path(folder) / n for n in (*names["out"], *names["record"])},
            )
        return
    _make_room(report, *made)
    began = time.monotonic()
    scratch.remove_recorded(lambda: {name: stage.outs for name, stage in lock.locked().items()})
    with processes.alone(scratch.lock_of(own), f"process that computes {name}"):
        _tidy(own, name, days=loaded.machine.keep_scratch_days)
        with stage_run(name, flat, deps, code=code, source=_source(run), scratch=own) as tracked:
            log = Log(own, tracked.log_step, checkpoint_seconds=seconds, stop=stop)
            tracked.catch_up(log.steps())
            metrics = work(log)
            tracked.log_scores(name, metrics)
            tracked.log_numbers("result", {**metrics, "seconds": time.monotonic() - began})
            report.write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
            written = {str(path): file_md5(path) for path in (report, *made) if path.exists()}
            tracked.log_outs(written)
        if ran := os.environ.get(RAN):
            with contextlib.suppress(OSError):  # the outs stand without it
                Path(ran).touch()
        if processes.STAGE in os.environ:
            scratch.finish(own, written)
        else:
            shutil.rmtree(own, ignore_errors=True)  # last: a failure before this line can be resumed


def _check_deps(paths: Sequence[Path], name: str) -> None:
    """Raise DataError for a path that is not there, or of which nobody can say so: its name is too long."""
    for path in paths:
        found = "none"
        try:
            if path.exists():
                if path.is_file() or path.is_dir():
                    continue
                found = "a device or a pipe"
        except OSError as error:
            found = error.strerror or "none"
        raise DataError(f"expected {path}, found {found}. Get it with: dvc repro {name}")


def _make_room(*paths: Path) -> None:
    """Make the folders that the stage writes into. Raise DataError where a file is in the way of one."""
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.is_dir()  # raises for a name that is too long
        except (OSError, ValueError) as error:
            if disk_is_full(error) or system_failed(error):
                raise
            raise DataError(f"expected to write {path}, found: {error}.") from None


def _tidy(own: Path, name: str, *, days: float) -> None:
    """Discard what an interrupted run has left if it is damaged, and what others have left if it is old."""
    if not Log(own).whole():
        print(f"\nWhat an interrupted run of {name} left in {own} is damaged. It is discarded: from step 0 again.")
        shutil.rmtree(own)
    scratch.begin(own)
    for folder in scratch.remove_old(days, except_for=own):
        print(f"Removed {folder}: an unfinished stage left it, and nobody wrote to it for {days:g} days.", file=sys.stderr)


@contextlib.contextmanager
def _quiet_if_stopped(stop: Stop) -> Iterator[None]:
    """The first process of a launch has left, and this one cannot go on: no error of its own."""
    try:
        yield
    except Exception:
        if not stop.asked:
            raise
        sys.exit(143)


def _checked(paths: Sequence[Path]) -> dict[str, str]:
    """The md5 of each dep, every file read once. Raises DataError where dvc.lock has another one."""
    known = hashes(*paths)
    integrity.check(known, paths)
    return {str(path): known_md5(path, known) for path in paths}


def _source(run: Callable[..., Metrics]) -> str:
    """The stage's file relative to the root of the code, such as study/table.py; its name if it lies elsewhere."""
    file, root = Path(inspect.getfile(run)).resolve(), Path(__file__).resolve().parents[1]
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


def _name(stage: str, items: Sequence[str]) -> str:
    """DVC's name of the stage: a study runs stages of the pipeline under its own names."""
    called = short(os.environ.get(processes.STAGE, ""))  # study/dvc.yaml:study_sparsify@0.9
    return called or "@".join(filter(None, [stage, "-".join(items)]))


def _arguments(run: Callable[..., Metrics], names: Mapping[str, list[str]]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=inspect.getdoc(inspect.getmodule(run)), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in [*names["dep"], *names["out"], *names["record"], "metrics"]:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, required=True)
    for name in names["item"]:
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="for this run alone")
    parser.add_argument("--part", action="append", default=[], type=Path, metavar="file", help="lies over params.yaml")
    return vars(parser.parse_args())


def digest(flat: Mapping[str, Any]) -> str:
    """sha256 of parameters, dotted key -> value: of their JSON with sorted keys."""
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()
