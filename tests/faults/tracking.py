"""MLflow's server is gone at the start, in the middle, to the end; it hangs; its answers are lost. Then it is back."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests import warm
from tests.faults.case import Case
from tests.faults.ground import Copy, Ground, answers, end, free_port, wait
from tests.faults.kills import Watched
from tests.faults.proxy import DROP, HANG, PASS, REFUSE, Proxy

STAGE, NEXT = "sparsify", "teach_task@topic"


@contextmanager
def server(ground: Ground) -> Iterator[tuple[Proxy, Path]]:
    """A server of MLflow's behind a proxy, and its database."""
    base, port = ground.work / "server.db", free_port()
    shutil.copy(ground.empty_store(), base)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{base}", "--port", str(port)]
    command += ["--workers", "1", "--artifacts-destination", str(ground.work / "artifacts")]
    environment = {**ground.environment(ground.work), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (ground.work / "server.log").open("wb") as log:
        process = psutil.Popen(command, cwd=ground.work, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        if not wait(lambda: answers(f"http://127.0.0.1:{port}/health"), every=0.5):
            raise RuntimeError((ground.work / "server.log").read_text()[-2000:])
        yield Proxy(port), base
    finally:
        end([*process.children(recursive=True), process])


def suite(ground: Ground) -> Iterator[Case]:
    with server(ground) as (proxy, base):
        for number, (name, what) in enumerate(CASES.items()):
            proxy.mode, proxy.limit = PASS, 10**9
            copy = ground.copy(f"tracking-{number}", STAGE, NEXT)
            copy.base = base
            copy.environment |= {"MLFLOW_TRACKING_URI": proxy.address, "MLFLOW_HTTP_REQUEST_TIMEOUT": "3"}
            lost = what(copy, proxy)
            proxy.mode, proxy.limit = PASS, 10**9
            left = list((copy.folder / ".pruneonce/unsent").glob("*.jsonl"))
            lost += [f"{len(left)} files of unsent metrics are left"] if left else []
            yield Case("tracking", name, (*lost, *copy.different(STAGE), *copy.tracked_badly(STAGE)))


def gone_at_the_start(copy: Copy, proxy: Proxy) -> list[str]:
    proxy.mode = REFUSE
    done = copy.run(*copy.command("dvc", STAGE))
    lost = [] if done.returncode and done.stdout.count("TrackerUnreachable: expected an MLflow") == 1 else [_told(done)]
    lost += ["a run was begun"] if copy.runs(STAGE) else []
    proxy.mode = PASS
    return lost + _finish(copy)


def _in_the_middle(mode: str, *, back: bool) -> Callable[[Copy, Proxy], list[str]]:
    """The server goes at a step; `back`: some steps later, else after the stage has ended."""

    def what(copy: Copy, proxy: Proxy) -> list[str]:
        watched = Watched(copy, STAGE)
        runner = copy.start(*copy.command("dvc", STAGE))
        wait(lambda: len(watched.steps()) >= 10 or runner.poll() is not None)
        proxy.mode = mode
        if back:
            wait(lambda: len(watched.steps()) >= 60 or runner.poll() is not None)
            proxy.mode = PASS
        code = runner.wait(900)
        lost = [f"the stage ended with {code}: {copy.said()[-300:]}"] if code else []
        if not back and copy.different(STAGE):
            lost.append("the outs are not there though the stage has ended")
        proxy.mode = PASS
        return lost + ([] if back else _next(copy))

    return what


def registered_by_hand(copy: Copy, proxy: Proxy) -> list[str]:
    """Not back before the end: then `pruneonce register`, which is cut short, and again."""
    lost = _to_the_end_without(copy, proxy)
    for limit in (4, 9):
        proxy.mode, proxy.limit = PASS, limit
        copy.run("python", "-m", "pipeline.cli", "register")
    proxy.limit = 10**9
    done = copy.run("python", "-m", "pipeline.cli", "register")
    return lost + ([] if not done.returncode else [_told(done)])


def by_the_flow(copy: Copy, proxy: Proxy) -> list[str]:
    lost = _to_the_end_without(copy, proxy)
    done = copy.run(*copy.command("flow", NEXT))
    return lost + ([] if not done.returncode else [_told(done)])


def killed_meanwhile(copy: Copy, proxy: Proxy) -> list[str]:
    """The server goes, then the stage is killed; both come back."""
    watched = Watched(copy, STAGE)
    runner = copy.start(*copy.command("dvc", STAGE))
    wait(lambda: len(watched.steps()) >= 10 or runner.poll() is not None)
    proxy.mode = REFUSE
    wait(lambda: len(watched.steps()) >= 40 or runner.poll() is not None)
    end([*warm.processes(), psutil.Process(runner.pid)])
    runner.wait(60)
    proxy.mode = PASS
    return _finish(copy)


def _to_the_end_without(copy: Copy, proxy: Proxy) -> list[str]:
    watched = Watched(copy, STAGE)
    runner = copy.start(*copy.command("dvc", STAGE))
    wait(lambda: len(watched.steps()) >= 10 or runner.poll() is not None)
    proxy.mode = REFUSE
    code = runner.wait(900)
    proxy.mode = PASS
    return [f"the stage ended with {code}: {copy.said()[-300:]}"] if code else []


def _finish(copy: Copy) -> list[str]:
    done = copy.run(*copy.command("dvc", STAGE))
    return [_told(done)] if done.returncode else []


def _next(copy: Copy) -> list[str]:
    done = copy.run(*copy.command("dvc", NEXT))
    said = "metrics that were kept were sent" in done.stdout
    return ([_told(done)] if done.returncode else []) + ([] if said else ["the next stage does not say what it sent"])


def _told(done: subprocess.CompletedProcess[str]) -> str:
    return f"it ended with {done.returncode}: {done.stdout[-400:]}"


CASES: dict[str, Callable[[Copy, Proxy], list[str]]] = {
    "gone at the start": gone_at_the_start,
    "gone in the middle, back before the end": _in_the_middle(REFUSE, back=True),
    "gone in the middle, back before the next stage": _in_the_middle(REFUSE, back=False),
    "gone to the end, then sent by `pruneonce register`, which is cut short twice": registered_by_hand,
    "gone to the end, then sent by the flow": by_the_flow,
    "it hangs, and answers again before the end": _in_the_middle(HANG, back=True),
    "it hangs to the end": _in_the_middle(HANG, back=False),
    "it takes requests, but its answers are lost, to the end": _in_the_middle(DROP, back=False),
    "its answers are lost for a while": _in_the_middle(DROP, back=True),
    "gone, and the stage is killed": killed_meanwhile,
}
