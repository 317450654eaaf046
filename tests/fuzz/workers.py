"""Processes that judge cases: each has its memory bounded, is ended where it hangs, and begun again where it died."""

import gc
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests.fuzz import case, fence
from tests.fuzz.case import Files, Verdict

MEMORY_BYTES = 3 << 30  # of a worker, beside what it has when it begins
FILE_BYTES = 64 << 20  # what a file may grow to, where an endless one is copied
GRACE_SECONDS = 5.0  # beyond a case's own time: then it hangs where no signal reaches it
FORK = multiprocessing.get_context("fork")  # torch is imported once, for all of them


@dataclass(frozen=True)
class Task:
    """A case to judge: of a number, or of files."""

    target: str
    number: int = 0
    files: Files = field(default_factory=dict)
    name: str = ""


@dataclass
class _Worker:
    pipe: Connection
    process: Any
    task: Task | None = None
    deadline: float = float("inf")


def judged(tasks: Iterable[Task], seed: int, *, processes: int) -> Iterator[tuple[Task, Verdict, float]]:
    """Every task with its verdict and its seconds, as they are done."""
    todo, folder = iter(tasks), tempfile.mkdtemp(prefix="fuzz-")  # of all workers: one that is ended cleans nothing up
    workers = [_begin(seed, folder) for _ in range(processes)]
    try:
        for worker in workers:
            _give(worker, next(todo, None))
        while busy := [worker for worker in workers if worker.task]:
            nearest = min(worker.deadline for worker in busy) - time.monotonic()
            ready = wait([worker.pipe for worker in busy], timeout=max(0.0, nearest))
            for worker in busy:
                if worker.pipe in ready or time.monotonic() > worker.deadline:
                    assert worker.task is not None
                    yield worker.task, *_answer(worker, seed, folder)
                    _give(worker, next(todo, None))
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()
        shutil.rmtree(folder, ignore_errors=True)


def _begin(seed: int, folder: str) -> _Worker:
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=_work, args=(theirs, seed, folder), daemon=True)
    process.start()
    theirs.close()
    return _Worker(ours, process)


def _give(worker: _Worker, task: Task | None) -> None:
    worker.task = task
    if task:
        worker.deadline = time.monotonic() + case.target(task.target).SECONDS + GRACE_SECONDS
        worker.pipe.send(task)


def _answer(worker: _Worker, seed: int, folder: str) -> tuple[Verdict, float]:
    """What the worker says; if it is dead or hangs, that, and another one in its place."""
    try:
        if worker.pipe.poll():
            return worker.pipe.recv()
        found = Verdict(False, "hangs where no signal reaches it")
    except (EOFError, ConnectionError):
        worker.process.join(5)
        found = Verdict(False, f"the process died (exit code {worker.process.exitcode})")
    worker.process.kill()
    worker.process.join()
    other = _begin(seed, folder)
    worker.pipe, worker.process = other.pipe, other.process
    return found, 0.0


def _work(pipe: Connection, seed: int, shared: str) -> None:
    """Judge what comes, until nothing does. What the process itself may do is bounded."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, now + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for stream in (0, 1, 2):  # what libraries in C print
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    folder = tempfile.tempdir = tempfile.mkdtemp(dir=shared)  # what a target writes for a moment is in it, too
    base = Path(folder, "cases")
    base.mkdir()
    fence.build(Path(folder))
    gc.freeze()  # of torch and all that was imported: a collection, which loading a model asks for, takes a second
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        began = time.monotonic()
        files = task.files or case.make(task.target, seed, task.number)
        verdict = case.judge(case.target(task.target), files, base)
        pipe.send((verdict, time.monotonic() - began))
