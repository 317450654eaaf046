"""The system's clock jumps by days, forwards and backwards, while a stage trains."""

import time
from collections.abc import Iterator

from tests import warm
from tests.faults.case import Case
from tests.faults.ground import TRAINED, Ground
from tests.faults.kills import Watched

DAY_SECONDS = 86400.0
JUMPS = {"forwards and back by a day": (0.0, DAY_SECONDS), "back by a year, then on": (0.0, -365 * DAY_SECONDS)}


def suite(ground: Ground) -> Iterator[Case]:
    for number, (name, offsets) in enumerate(JUMPS.items()):
        stage = TRAINED[1 + number]
        copy = ground.copy(f"clock-{number}", stage)
        copy.since = 0
        copy.environment[warm.CLOCK] = " ".join(map(str, offsets))
        watched, checkpoints = Watched(copy, stage), set()
        copy.set("machine", checkpoint_seconds=0.2)
        runner = copy.start(*copy.command("dvc", stage))
        while runner.poll() is None:
            checkpoints |= {path.name for path in watched.scratch.glob("*.safetensors")}
            time.sleep(0.02)
        lost = [f"it ended with {runner.returncode}: {copy.said()[-400:]}"] if runner.returncode else []
        lost += [] if checkpoints else ["no checkpoint was saved"]
        yield Case(
            "clock", name, (*lost, *copy.different(stage), *copy.tracked_badly(stage)), {"checkpoints": len(checkpoints)}
        )
