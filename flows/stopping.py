"""Ctrl-C, at any moment: one line, exit code 130, within seconds.

Nothing heavy is imported here, so that it holds while all that is heavy is imported elsewhere. Prefect is not waited for: it
would start its server to the end, or report to one that Ctrl-C has ended too.
"""

import os
import signal
import sys
from contextlib import suppress
from threading import Thread
from typing import NoReturn

PARENT = "PRUNEONCE_PARENT_RUN"  # `tracking.PARENT`, whose module takes seconds to import
CLOSING_SECONDS = 5.0


def listen() -> None:
    """From here on Ctrl-C leaves, wherever it comes; a stage under way listens for itself."""
    signal.signal(signal.SIGINT, lambda *_: leave())


def listens() -> bool:
    """Whether this process is ours to end, and not somebody's program that calls the flow."""
    return getattr(signal.getsignal(signal.SIGINT), "__module__", None) == __name__


def leave() -> NoReturn:
    """Close our MLflow run, say so, and go. In a thread: what was interrupted may hold a lock that MLflow waits for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if run := os.environ.get(PARENT):
        closing = Thread(target=_close, args=(run,), daemon=True)
        closing.start()
        closing.join(CLOSING_SECONDS)
    with suppress(OSError, ValueError):  # nobody may be there to read it
        sys.stdout.flush()
        print("\nStopped by Ctrl-C. Finished stages are kept; run again to go on.", file=sys.stderr, flush=True)
    os._exit(130)


def _close(run: str) -> None:
    from pipeline import tracking  # imported long since, if there is a run

    tracking.end_flow(run, "KILLED", {})
