"""Bytes are damaged: of a file in DVC's cache, of the newest checkpoints, of the history. Each is found, with a line."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests import warm
from tests.faults.case import Case
from tests.faults.disk import objects
from tests.faults.ground import Copy, Ground, end, wait
from tests.faults.kills import Watched

STAGE = "sparsify"


def flip(path: Path, chance) -> None:
    mode, content = path.stat().st_mode, bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    content[place] ^= 1 + chance.randrange(255)
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(mode)


def cut(path: Path, chance) -> None:
    mode, content = path.stat().st_mode, path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[: chance.randrange(len(content))])
    path.chmod(mode)


def suite(ground: Ground) -> Iterator[Case]:
    for number, (name, what) in enumerate(CASES.items()):
        copy = ground.copy(f"cache-{number}")
        lost = what(copy)
        yield Case("cache", name, (*lost, *copy.different(STAGE)))


def _in_the_cache(damage: Callable, *, remote: bool) -> Callable[[Copy], list[str]]:
    """The largest file of the stage's out is damaged in the cache, and gone from the workspace."""

    def what(copy: Copy) -> list[str]:
        lost, largest = [], max(objects(copy, STAGE), key=lambda path: path.stat().st_size)
        if remote:
            copy.run("dvc", "remote", "add", "--default", "store", str(copy.folder.with_name(f"{copy.folder.name}-store")))
            pushed = copy.run("dvc", "push")
            lost += [f"dvc push: {pushed.stdout[-300:]}"] if pushed.returncode else []
        damage(largest, copy.ground.chance)
        shutil.rmtree(copy.folder / "data/sparsify")
        said = copy.run("python", "-m", "flows.compress")
        advice = re.findall(r"To repair it[^:]*: (.*)$", said.stdout, re.MULTILINE)
        if not advice:  # the stage was computed again, or the file fetched again
            return lost + ([f"it ended with {said.returncode}: {said.stdout[-400:]}"] if said.returncode else [])
        lost += [] if said.returncode == 1 and "DataError" in said.stdout else [f"no line: {said.stdout[-400:]}"]
        done = copy.run("bash", "-euc", advice[0])
        again = copy.run("python", "-m", "flows.compress")
        return lost + [f"the advice: {d.stdout[-400:]}" for d in (done, again) if d.returncode]

    return what


def _of_the_scratch(damage: Callable, pattern: str, count: int, says: str, *, begins: bool) -> Callable[[Copy], list[str]]:
    """A training is killed, and so many of its newest files damaged."""

    def what(copy: Copy) -> list[str]:
        copy.forget(STAGE)
        watched = Watched(copy, STAGE)
        runner = copy.start(*copy.command("dvc", STAGE))
        wait(lambda: len(watched.steps()) >= 20 or runner.poll() is not None)
        end([*warm.processes(), psutil.Process(runner.pid)])
        runner.wait(60)
        files = sorted(watched.scratch.glob(pattern), reverse=True)[:count]
        for file in files:
            damage(file, copy.ground.chance)
        before = len(watched.steps())
        again = copy.start(*copy.command("dvc", STAGE))
        wait(lambda: len(watched.steps()) not in (0, before) or again.poll() is not None)
        steps = watched.steps()
        code, said = again.wait(900), copy.said()
        lost = [f"it ended with {code}: {said[-400:]}"] if code else []
        lost += [] if says in said else [f"no line says {says!r}"]
        began = steps[before] if len(steps) > before else 0
        lost += [] if len(files) == count else [f"{len(files)} files to damage"]
        lost += [f"it began at step {began}"] if (began == 0) != begins else []
        return lost + copy.tracked_badly(STAGE)

    return what


CHECKPOINT, DISCARDED = "*.safetensors", "It is discarded: from step"
CASES: dict[str, Callable[[Copy], list[str]]] = {
    "a byte of DVC's cache": _in_the_cache(flip, remote=False),
    "a file of DVC's cache cut short": _in_the_cache(cut, remote=False),
    "a byte of DVC's cache; a remote has the right file": _in_the_cache(flip, remote=True),
    "a byte of the newest checkpoint": _of_the_scratch(flip, CHECKPOINT, 1, DISCARDED, begins=False),
    "the newest checkpoint cut short": _of_the_scratch(cut, CHECKPOINT, 1, DISCARDED, begins=False),
    "both checkpoints": _of_the_scratch(flip, CHECKPOINT, 2, f"{DISCARDED} 0", begins=True),
}
