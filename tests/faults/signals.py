"""Signals to all that runs, a closed terminal, lost processes: the cases of tests/endings.py, each many times.

Programs start as a person starts them here, for process groups and terminals are the point.
"""

import time
from collections.abc import Iterator

from tests import endings
from tests.faults.case import Case
from tests.faults.ground import Copy, Ground, wait
from tests.faults.kills import Watched

STAGE = "sparsify"
CASES = [*endings.CASES, *endings.STARTS_AGAIN]


def suite(ground: Ground) -> Iterator[Case]:
    for case in CASES:
        lost: list[str] = []
        longest = 0.0
        for time_ in range(max(1, ground.kills // 10)):
            copy = ground.copy(f"signals-{str(case).replace(' ', '-').replace(':', '')}-{time_}", STAGE).really()
            seconds, more = ended(copy, case)
            longest, lost = max(longest, seconds), lost + more
        yield Case("signals", str(case), tuple(lost), {"most_seconds": round(longest, 1)})


def ended(copy: Copy, case: endings.Case) -> tuple[float, list[str]]:
    """Strike a run in the middle of its training. Returns the seconds until nothing was left, and what was lost."""
    watched = Watched(copy, STAGE)
    command = copy.words(*copy.command(case.runner, STAGE))
    log = copy.folder.with_name(f"{copy.folder.name}.log")
    with endings.begin(command, copy.folder, log, copy.environment) as run:
        wait(lambda: len(watched.steps()) >= 10 or run.process.poll() is not None)
        time.sleep(copy.ground.chance.uniform(0, 1))
        run.strike(case, f"stages.{STAGE}")
        if case in endings.STARTS_AGAIN:
            code = run.process.wait(900)
            lost = [f"the flow ended with {code}: {run.said()[-300:]}"] if code else []
            return 0.0, [*lost, *copy.different(STAGE), *copy.tracked_badly(STAGE)]
        gone, left = run.ends()
        lost = [f"{process.cmdline()[1:4]} lives" for process in left if process.is_running()]
        lost += [f"{lock} is held" for lock in endings.held(copy.folder)]
    steps = max(watched.steps(), default=0)
    done = copy.run(*copy.command("flow", STAGE))
    lost += [f"the next run ended with {done.returncode}: {done.stdout[-300:]}"] if done.returncode else []
    lost += [] if steps else ["nothing was saved to go on from"]
    return max(gone.values(), default=0.0), [*lost, *copy.different(STAGE), *copy.tracked_badly(STAGE)]
