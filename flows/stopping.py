"""Ctrl-C, at any moment: one line, exit code 130, within seconds.

Nothing heavy is imported here, so it also works while the other modules are imported. Prefect is not waited for: it would
first start its server, or report to one that Ctrl-C has ended too.
"""

import os
import signal
import sys
from contextlib import suppress
from threading import Thread
from typing import NoReturn

CLOSING_SECONDS = 5.0


def listen() -> None:
    """From here on Ctrl-C ends this process. A running stage handles the signal itself."""
    signal.signal(signal.SIGINT, lambda *_: leave())


def listens() -> bool:
    """Whether `listen` was called: else this is somebody's program that calls the flow, and not ours to end."""
    return getattr(signal.getsignal(signal.SIGINT), "__module__", None) == __name__


def leave() -> NoReturn:
    """Close the MLflow runs, in a thread, and exit: the interrupted code may hold a lock that MLflow needs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if runs := list(getattr(sys.modules.get("pipeline.tracking.flow_runs"), "OPEN", ())):
        closing = Thread(target=_close, args=(runs,), daemon=True)
        closing.start()
        closing.join(CLOSING_SECONDS)
    with suppress(OSError, ValueError):  # the terminal may be gone
        sys.stdout.flush()
        print("\nStopped by Ctrl-C. Finished stages are kept; run again to go on.", file=sys.stderr, flush=True)
    os._exit(130)


def _close(runs: list[str]) -> None:
    from pipeline.tracking import flow_runs  # imported before, if there is a run

    for run in reversed(runs):
        flow_runs.end_flow(run, "KILLED")
