"""`python -m tests.fuzz`: kept seeds first, then new cases. Exit code 1 if one of them was not good.

A bad case is written to .pruneonce/fuzz/; `python -m tests.fuzz --replay FILE` shows what happens, with its traceback.
"""

import argparse
import os

# Before torch is imported: a thread a process is enough, and threads do not survive a fork.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = os.environ["TQDM_DISABLE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import itertools
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

from tests.fuzz import case, fence, workers
from tests.fuzz.workers import Task

FOUND = Path(".pruneonce/fuzz")
SHOWN = 20  # kinds of failure a target


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="of the new cases (1)")
    parser.add_argument("--cases", type=int, default=20_000, help="how many new ones (20000)")
    parser.add_argument("--target", action="append", choices=case.names(), help="these alone; default: all")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: as many as cores")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one written case, and show what happens")
    args = parser.parse_args()
    if args.replay:
        return _replay(args.replay)
    chosen = args.target or (case.names() if args.cases else sorted({name for name, _ in _seeds()}))
    modules = [case.target(name) for name in chosen]  # imports torch, once for all workers
    for module in modules:
        getattr(module, "start", lambda: None)()
    print(f"seed {args.seed}, {args.cases} new cases of {len(chosen)} targets; a bad one is written to {FOUND}/", flush=True)
    tasks = itertools.chain(_kept(chosen), _new(chosen, args.cases))
    sys.exit(_report(workers.judged(tasks, args.seed, processes=args.processes), args.seed))


def _kept(chosen: list[str]) -> Iterator[Task]:
    for path, (name, files) in zip(case.kept(), _seeds(), strict=True):
        if name in chosen:
            yield Task(name, files=files, name=path.stem)


def _seeds() -> Iterator[tuple[str, case.Files]]:
    return (case.from_json(path.read_text()) for path in case.kept())


def _new(chosen: list[str], cases: int) -> Iterator[Task]:
    """Of every target its share, one after the other, so that a run cut short has seen all of them."""
    parts = [name for name in chosen for _ in range(case.target(name).SHARE)]
    given: Counter[str] = Counter()
    for name in itertools.islice(itertools.cycle(parts), cases):
        yield Task(name, number=given[name])
        given[name] += 1


def _report(found, seed: int) -> int:
    """Say what was found; 1 if anything."""
    began, total, spent = time.monotonic(), Counter(), Counter()
    kinds, bad = defaultdict(Counter), defaultdict(dict)
    for number, (task, verdict, seconds) in enumerate(found, 1):
        total[task.target] += 1
        spent[task.target] += seconds
        kinds[task.target][verdict.what] += 1
        if not verdict.good and verdict.what not in bad[task.target]:
            bad[task.target][verdict.what] = _write(task, verdict.what, seed)
        if number % 1000 == 0:
            print(f"  {number} in {time.monotonic() - began:.0f} s", flush=True)
    failed = 0
    for name in sorted(total):
        wrong = sum(kinds[name][what] for what in bad[name])
        failed += wrong
        good = ", ".join(f"{what} {count}" for what, count in kinds[name].most_common() if what not in bad[name])
        print(f"{name:12} {total[name]:6} cases {1e3 * spent[name] / total[name]:7.1f} ms  {wrong:5} bad   {good}")
        for what, path in list(bad[name].items())[:SHOWN]:
            print(f"    {kinds[name][what]} x {what}\n      python -m tests.fuzz --replay {path}")
    print(f"{sum(total.values())} cases, {failed} bad, {time.monotonic() - began:.0f} s, seed {seed}")
    return int(failed > 0)


def _write(task: Task, what: str, seed: int) -> Path:
    FOUND.mkdir(parents=True, exist_ok=True)
    path = FOUND / f"{task.target}-{task.name or f'{seed}-{task.number}'}.json"
    files = task.files or case.make(task.target, seed, task.number)
    path.write_text(case.to_json(task.target, files, f"{what}; seed {seed}, case {task.number}"))
    return path


def _replay(path: Path) -> None:
    name, files = case.from_json(path.read_text())
    module = case.target(name)
    getattr(module, "start", lambda: None)()
    with tempfile.TemporaryDirectory() as base, chdir(base):
        tempfile.tempdir = base
        fence.build(Path(base))
        for inner, content in files.items():
            Path(inner).parent.mkdir(parents=True, exist_ok=True)
            Path(inner).write_bytes(content)
        module.run(Path(base))


if __name__ == "__main__":
    main()
