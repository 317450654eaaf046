"""SIGKILL at any moment of a training: of the stage alone, or of everything that runs, then on by DVC or by the flow."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests import warm
from tests.faults.case import Case
from tests.faults.ground import TRAINED, Copy, Ground, end, wait

MOMENTS = ("training", "writing", "training", "writing", "closing", "training", "beginning")


@dataclass
class Counted:
    """What the kills of a stage came to."""

    kills: int = 0
    writing: int = 0  # kills that left a half-written checkpoint
    executions: int = 0
    resumed: int = 0  # starts that went on from a checkpoint
    lost_steps: int = 0  # the most that a kill cost
    lost_seconds: float = 0.0
    lost: list[str] = field(default_factory=list)


class Watched:
    """The scratch folder of a stage at work."""

    def __init__(self, copy: Copy, stage: str):
        self.copy, self.stage = copy, stage
        self.before = 0  # lines of the history when the last kill was made
        self.done = -1  # its last step
        self.killed_at = 0.0
        self.killed_alone = False  # the stage of the run that goes: a flow gives up after some of that

    @property
    def scratch(self) -> Path:
        found = [p for p in (self.copy.folder / ".pruneonce/scratch").glob(f"{self.stage}-*") if p.is_dir()]
        return found[0] if found else self.copy.folder / "none"

    def steps(self) -> list[int]:
        with contextlib.suppress(OSError):
            lines = (self.scratch / "history.jsonl").read_bytes().split(b"\n")
            found = [re.match(rb'[0-9a-f]{8} \{"step": (\d+),.*\}$', line) for line in lines]
            return [int(match[1]) for match in found if match]
        return []

    def pid(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            said = json.loads(self.scratch.with_name(f"{self.scratch.name}.lock.pid").read_text())
            return said["pid"] if isinstance(said, dict) else said
        return 0

    def half_written(self) -> bool:
        with contextlib.suppress(OSError):
            return any(name.endswith(".part") for name in os.listdir(self.scratch))
        return False

    def saved_at(self) -> float:
        """When the newest checkpoint was complete; when the run began, if there is none."""
        with contextlib.suppress(OSError):
            saved = [path.stat().st_mtime for path in self.scratch.glob("*.safetensors")]
            return max(saved, default=(self.scratch / "run").stat().st_mtime)
        return 0.0


def suite(ground: Ground) -> Iterator[Case]:
    for stage in TRAINED:
        counted = Counted()
        while counted.kills < ground.kills and not (counted.lost and counted.executions > 5):
            execution(ground, stage, counted, ground.kills - counted.kills)
        figures = {
            "kills": counted.kills,
            "while_writing": counted.writing,
            "executions": counted.executions,
            "resumed": counted.resumed,
            "most_steps_lost": counted.lost_steps,
            "most_seconds_lost": round(counted.lost_seconds, 2),
        }
        yield Case("kills", stage, tuple(counted.lost), figures)


def execution(ground: Ground, stage: str, counted: Counted, left: int) -> None:
    """One execution of a stage, killed three to six times before it ends."""
    copy = ground.copy(f"kills-{stage.partition('@')[0]}-{counted.executions}", stage)
    watched, kills = Watched(copy, stage), min(left, ground.chance.randint(3, 6))
    total = max((step for _, step in ground.metrics(stage)), default=0) + 1
    runner: subprocess.Popen | None = None
    for number in range(kills):
        if runner is None:
            runner = copy.start(*copy.command(ground.chance.choice(["dvc", "flow"]), stage))
        reach = watched.done + 1 + ground.chance.randint(1, max(1, (total - watched.done) // (kills - number + 1)))
        moment = "closing" if number == kills - 1 and kills > 3 else ground.chance.choice(MOMENTS)
        if not await_moment(watched, runner, moment, reach):
            break
        runner = kill(watched, runner, counted, ground)
    finish(ground, watched, runner, counted)


def await_moment(watched: Watched, runner: subprocess.Popen, moment: str, reach: int) -> bool:
    """Wait for the moment. False if the run has ended before it."""
    chance = watched.copy.ground.chance
    if moment == "beginning":
        time.sleep(chance.uniform(0, 3))
        return runner.poll() is None
    going = lambda: runner.poll() is None  # noqa: E731
    wait(lambda: len(watched.steps()) > watched.before or not going())
    wait(lambda: max(watched.steps(), default=-1) >= reach or closing(watched) or not going())
    if moment == "writing":
        wait(lambda: watched.half_written() or closing(watched) or not going(), every=0.0)
    elif moment == "closing":
        wait(lambda: closing(watched) or not going())
        time.sleep(chance.uniform(0, 0.5))
    else:
        time.sleep(chance.uniform(0, 0.1))
    return going()


def closing(watched: Watched) -> bool:
    """Whether the stage writes its outs."""
    return any((watched.copy.folder / out).exists() for out in watched.copy.ground.outs(watched.stage))


def kill(watched: Watched, runner: subprocess.Popen, counted: Counted, ground: Ground) -> subprocess.Popen | None:
    """Kill the stage, or all of the run. Returns the run if it goes on: a flow starts a killed stage again."""
    pid, alone = watched.pid(), ground.chance.random() < 0.5
    pid = pid if pid in {process.pid for process in warm.processes()} else 0  # the file may be of a process that is gone
    saved, now = watched.saved_at(), time.time()
    if alone and pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait(lambda: not psutil.pid_exists(pid), seconds=20)
    else:
        end([*warm.processes(), psutil.Process(runner.pid)])
    watched.killed_alone = bool(alone and pid)
    counted.kills += 1
    counted.writing += watched.half_written()
    note_loss(watched, counted, saved, now)
    if watched.killed_alone:
        wait(lambda: runner.poll() is not None or watched.pid() not in (0, pid))
        if runner.poll() is None:
            return runner
    runner.wait(60)
    watched.killed_alone = False
    return None


def note_loss(watched: Watched, counted: Counted, saved: float, now: float) -> None:
    """Count what the kill before this one cost, and note this one."""
    count_resumed(watched, counted)
    steps = watched.steps()
    if len(steps) > watched.before:
        counted.lost_seconds = max(counted.lost_seconds, now - saved if saved else 0.0)
    watched.before, watched.done, watched.killed_at = len(steps), max(steps, default=-1), now


def count_resumed(watched: Watched, counted: Counted) -> None:
    steps = watched.steps()
    if watched.killed_at and len(steps) > watched.before:
        first = steps[watched.before]
        counted.resumed += first > 0
        counted.lost_steps = max(counted.lost_steps, watched.done + 1 - first)


def finish(ground: Ground, watched: Watched, runner: subprocess.Popen | None, counted: Counted) -> None:
    """Let the execution end, and compare it with the run without a fault."""
    copy, stage = watched.copy, watched.stage
    runner = runner or copy.start(*copy.command(ground.chance.choice(["dvc", "flow"]), stage))
    wait(lambda: len(watched.steps()) > watched.before or runner.poll() is not None)
    count_resumed(watched, counted)
    try:
        code = runner.wait(900)
    except subprocess.TimeoutExpired:
        code = -1
        end([*warm.processes(), psutil.Process(runner.pid)])
    if code and not watched.killed_alone:
        counted.lost.append(f"{copy.folder.name}: the next run ended with {code}: {copy.said()[-300:]}")
    if code:
        again = copy.run(*copy.command("dvc", stage))
        if again.returncode:
            counted.lost.append(
                f"{stage}, {copy.folder.name}: the next run ended with {again.returncode}: {again.stdout[-300:]}"
            )
    counted.executions += 1
    counted.lost += [f"{copy.folder.name}: {line}" for line in (*copy.different(stage), *copy.tracked_badly(stage))]
