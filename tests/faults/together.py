"""Two runs at once in one folder: two flows, a flow and DVC, two of DVC. One works; the other one says so, or waits."""

import time
from collections.abc import Iterator

from tests.faults.case import Case
from tests.faults.ground import Copy, Ground, wait
from tests.faults.kills import Watched

STAGE = "sparsify"
PAIRS = {
    "two flows": ("flow", "flow"),
    "a flow, then dvc repro": ("flow", "dvc"),
    "dvc repro, then a flow": ("dvc", "flow"),
    "two of dvc repro": ("dvc", "dvc"),
}


def suite(ground: Ground) -> Iterator[Case]:
    for number, (name, pair) in enumerate(PAIRS.items()):
        for moment in ("while the stage trains", "at once"):
            copy = ground.copy(f"together-{number}-{moment.replace(' ', '-')}", STAGE)
            yield Case("together", f"{name}, {moment}", tuple(both(copy, pair, moment)))


def both(copy: Copy, pair: tuple[str, str], moment: str) -> list[str]:
    watched = Watched(copy, STAGE)
    first = copy.start(*copy.command(pair[0], STAGE), log="first")
    if moment != "at once":
        wait(lambda: len(watched.steps()) >= 5 or first.poll() is not None)
    second = copy.start(*copy.command(pair[1], STAGE), log="second")
    codes = [process.wait(900) for process in (first, second)]
    texts = [copy.said("first"), copy.said("second")]
    lost = [f"both ended with an error: {[text[-300:] for text in texts]}"] if all(codes) else []
    for code, text in zip(codes, texts, strict=True):
        told = ("AlreadyRunning", "expected no", "is busy", "Unable to acquire lock")
        if code and not any(word in text for word in told):
            lost.append(f"it ended with {code} and does not say why: {text[-400:]}")
        lost += ["a traceback"] if "Traceback" in text else []
    time.sleep(0.1)
    done = copy.run(*copy.command("flow", STAGE))
    lost += [f"the next flow ended with {done.returncode}: {done.stdout[-300:]}"] if done.returncode else []
    return [*lost, *copy.different(STAGE), *copy.tracked_badly(STAGE)]
