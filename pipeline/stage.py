"""How a stage file becomes a command. A stage's signature is its contract with dvc.yaml.

`python -m stages.sparsify --teacher data/... --model data/... --metrics data/...` reads params.yaml, opens an MLflow
run, calls `run` once, and writes its metrics. Every error a user can meet ends in one line and a non-zero exit.
`--set sparsify.sparsity=0.9` is another value for this run alone: how the study runs a stage of the pipeline otherwise.
A stage that trains starts itself again under params.yaml's `launcher`. Under `torchrun -m stages.sparsify ...` every process
calls `run`; the first one tracks and writes, what the others write is thrown away.
"""

import argparse
import contextlib
import csv
import hashlib
import inspect
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from pipeline import integrity, lineage, processes, tracking
from pipeline.params.document import load
from pipeline.params.section import Section
from pruneonce.errors import ConfigError, DataError, PruneOnceError

Dep = Annotated[Path, "dep"]  # a path the stage reads
Given = Annotated[Path, "given"]  # one that a person gives, in params.yaml under this name: read there, so no shell reads it
Out = Annotated[Path, "out"]  # a path the stage writes; no other stage writes it
Record = Annotated[Path, "record"]  # a small out that git keeps: a metric or a plot's numbers
Item = Annotated[str, "item"]  # one value of dvc.yaml's foreach or matrix; the first one is a task or a source
Metrics = Mapping[str, Any]  # numbers by name; nested mappings are groups

KINDS = {"dep": Dep, "given": Given, "out": Out, "record": Record, "item": Item}
SCRATCH = Path(".pruneonce/scratch")  # checkpoints of runs under way; ignored by git, safe to delete
HISTORY_EVERY_STEPS = 5
LAUNCHED = "PRUNEONCE_LAUNCHED"  # set for what the launcher starts
CLOSING_SECONDS = 20.0  # what a stopped stage has to close its MLflow run


def contract(run: Callable[..., Metrics]) -> dict[str, list[str]]:
    """Parameter names of `run` by kind: dep, given, out, record, item, section."""
    hints = get_type_hints(run, include_extras=True)
    hints.pop("return", None)
    named = {kind: [n for n, t in hints.items() if t == mark] for kind, mark in KINDS.items()}
    named["section"] = [n for n, t in hints.items() if all(_is_section(kind) for kind in get_args(t) or (t,))]
    return named


def _is_section(hint: object) -> bool:
    return inspect.isclass(hint) and issubclass(hint, Section)


@dataclass
class Log:
    """What a stage says while it works: metrics by step, to MLflow and, if asked for, to a CSV that DVC plots.

    Calling it with a step and metrics records them. `scratch` is a folder for checkpoints that is this run's own; the
    steps stand there too, so that a resumed run ends with the same CSV and the same metrics in MLflow as one that was
    never interrupted.
    """

    scratch: Path
    track: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
    rows: dict[int, dict[str, float]] = field(default_factory=dict)

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        with contextlib.suppress(OSError):  # a full disk: then what is interrupted begins again, as `whole` will see
            self.scratch.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab") as file:
                file.write(_checked_line(json.dumps({"step": step, **metrics}).encode()))
        self.track(step, metrics)
        if step % HISTORY_EVERY_STEPS == 0:
            self.rows[step] = dict(metrics)

    @property
    def file(self) -> Path:
        """All steps, a line each."""
        return self.scratch / "history.jsonl"

    def steps(self) -> Iterator[tuple[int, dict[str, float]]]:
        """What was recorded, also by processes of this run that were killed; a line that does not check is none."""
        for line in self.file.read_bytes().split(b"\n") if self.file.exists() else ():  # no step, no file
            _, _, said = line.partition(b" ")
            if line == _checked_line(said).strip():
                row = json.loads(said)
                yield row.pop("step"), row

    def whole(self) -> bool:
        """Whether no step is missing before the last one: only then can what was interrupted be gone on with."""
        found = {step for step, _ in self.steps()}
        begun = any(self.scratch.glob("*.safetensors"))  # a training was saved, and so some steps were taken
        return found == set(range(len(found))) and bool(found or not begun)

    def write_history(self, path: Path) -> None:
        """Every fifth step as CSV, one row a step, 6 significant digits."""
        steps = {step: metrics for step, metrics in self.steps() if step % HISTORY_EVERY_STEPS == 0} | self.rows
        # Speed is not a function of deps and params: it goes to MLflow, never into an out.
        rows = [
            {"step": s, **{k: v for k, v in row.items() if k != "tokens_per_second"}} for s, row in sorted(steps.items())
        ]
        columns = list(dict.fromkeys(key for row in rows for key in row)) or ["step", "loss"]
        with path.open("w", newline="") as file:
            out = csv.DictWriter(file, columns, lineterminator="\n")
            out.writeheader()
            out.writerows({k: v if k == "step" else f"{v:.6g}" for k, v in row.items()} for row in rows)


def _checked_line(said: bytes) -> bytes:
    """A line with a checksum before it. It begins with its line break: the one before may have been cut short by a kill."""
    return b"\n%08x %s" % (zlib.crc32(said), said)


class Quiet(Log):
    """The log of a process that is not the first of its launch: the first one says it all."""

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def write_history(self, path: Path) -> None:
        pass


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


def main(run: Callable[..., Metrics]) -> None:
    """Run a stage from the command line; exit 0, 1 for an error with a message, 130 for Ctrl-C."""
    stage = Path(inspect.getfile(run)).stem
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    processes.end_with_parent()
    try:
        _main(run, stage)
    except PruneOnceError as error:
        sys.exit(f"\n{stage}: {type(error).__name__}: {error}")
    except KeyboardInterrupt:
        print(f"\n{stage}: stopped by Ctrl-C. Finished stages are kept; run again to go on.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not _disk_is_full(error):
            raise
        sys.exit(f"\n{stage}: the disk is full ({error}). Finished stages are kept; free some space and run again.")


def _disk_is_full(error: Exception) -> bool:
    """Whether it is ENOSPC or EDQUOT; libraries written in Rust (safetensors) say so in words only."""
    return getattr(error, "errno", None) in (28, 122) or re.search(r"\(os error (28|122)\)", str(error)) is not None


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM end what runs inside, as KeyboardInterrupt and as SystemExit(143).

    Python drops an exception that is raised in a finalizer or a callback, and a training step is full of them: measured,
    one Ctrl-C in five was lost. So it is raised again every second until it has left this block. From then on no signal
    disturbs the closing of the run, and the kernel ends a process that is not done after CLOSING_SECONDS: an interrupted
    library may hold a lock that nobody gives back.
    """
    found: list[BaseException] = []

    def stop(number: int, frame: object) -> None:
        found.append(SystemExit(143) if number == signal.SIGTERM else KeyboardInterrupt())
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        raise found[0]

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, CLOSING_SECONDS if found else 0.0)
        if found:
            before = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN, signal.SIGALRM: signal.SIG_DFL}
        for number, handler in before.items():
            signal.signal(number, handler)


def _main(run: Callable[..., Metrics], stage: str) -> None:
    wants = contract(run)
    args = _arguments(run, wants)
    items = [args[name] for name in wants["item"]]
    loaded = load(changes=args.pop("set"))
    sections = {name: loaded.section(name, next(iter(items), None)) for name in wants["section"]}
    flat = tracking.flatten({name: section.model_dump() for name, section in sections.items()})
    name = _name(stage, items)
    args |= {name: Path(getattr(section, name)) for name in wants["given"] for section in sections.values()}
    reads = [*wants["dep"], *wants["given"]]
    for path in (args[n] for n in wants["dep"]):
        if not path.exists():
            raise DataError(f"expected {path}, which this stage reads, found none. Get it with: dvc repro {name}")
    deps = _checked([args[n] for n in reads if args[n].exists()])  # of one that is given the stage says what is wrong
    scratch = SCRATCH / f"{name}-{_key(run, flat, deps)}"
    report = args.pop("metrics")
    made = [args[n] for n in (*wants["out"], *wants["record"])]

    def work(log: Log, **elsewhere: Path) -> Metrics:
        with stoppable():
            return run(**{**args, **elsewhere}, **sections, log=log)

    if os.environ.get("RANK", "0") != "0":  # torchrun and accelerate number the processes of a launch
        with tempfile.TemporaryDirectory() as folder:
            work(Quiet(scratch), **{n: Path(folder) / n for n in (*wants["out"], *wants["record"])})
        return
    for path in (report, *made):
        path.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with processes.alone(scratch.with_name(f"{scratch.name}.lock"), f"process that computes {name}"):
        _discard_damaged(scratch, name)
        with tracking.stage_run(name, flat, deps, file=stage, scratch=scratch) as tracked:
            log = Log(scratch, tracked.log_step)
            tracked.catch_up(log.steps())
            metrics = work(log)
            tracked.log_result(metrics, seconds=time.monotonic() - began)
            report.write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
            outs = {str(path): lineage.file_md5(path) for path in (report, *made) if path.exists()}
            tracked.log_outs(outs)
        lineage.leave_for_sealing(tracked.run_id, outs)
        shutil.rmtree(scratch, ignore_errors=True)  # last: what fails before it is resumed


def _discard_damaged(scratch: Path, name: str) -> None:
    if not Log(scratch).whole():
        print(f"\nWhat an interrupted run of {name} left in {scratch} is damaged. It is discarded: from step 0 again.")
        shutil.rmtree(scratch)


def _checked(paths: Sequence[Path]) -> dict[str, str]:
    """The md5 of each dep, every file read once. Raises DataError where dvc.lock has another one."""
    known = {file: md5 for path in paths for file, md5 in integrity.hashes(path).items()}
    integrity.check(known, paths)
    return {str(path): integrity.md5(path, known) for path in paths}


def _name(stage: str, items: Sequence[str]) -> str:
    """What DVC calls the stage: the study runs stages of the pipeline under names of its own."""
    called = os.environ.get("DVC_STAGE", "").rpartition(":")[2]  # study/dvc.yaml:study_sparsify@0.9
    return called or "@".join(filter(None, [stage, "-".join(items)]))


def _arguments(run: Callable[..., Metrics], wants: Mapping[str, list[str]]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=inspect.getdoc(inspect.getmodule(run)), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in [*wants["dep"], *wants["out"], *wants["record"], "metrics"]:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, required=True)
    for name in wants["item"]:
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="for this run alone")
    return vars(parser.parse_args())


def _key(run: Callable[..., Metrics], flat: Mapping[str, Any], deps: Mapping[str, str]) -> str:
    """What determines a stage: parameters, inputs, processes, code. A checkpoint of anything else is not resumed."""
    processes = os.environ.get("WORLD_SIZE", "1")
    digest = hashlib.sha256(repr((sorted(flat.items()), sorted(deps.items()), processes)).encode())
    root = Path(inspect.getfile(run)).resolve().parents[1]
    for path in [
        Path(inspect.getfile(run)),
        *sorted((root / "pruneonce").rglob("*.py")),
        *Path(inspect.getfile(run)).parent.glob("*.py"),
    ]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
