"""How Ctrl-C and SIGTERM end a stage, and the environment variables that a flow and its stages share.

The standard library alone is imported here: a flow listens for Ctrl-C while everything else is imported.
"""

import contextlib
import signal
from collections.abc import Iterator

PARENT = "PRUNEONCE_PARENT_RUN"  # set by the flow: the id of its MLflow run; never changes an out
RAN = "PRUNEONCE_RAN"  # set by the flow: a file that a stage touches when its work is done
CLOSING_SECONDS = 20.0  # a stopped stage has this long to close its MLflow run


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM end what runs inside, as KeyboardInterrupt and as SystemExit(143).

    Python drops an exception that is raised in a finalizer or a callback, and a training step has many of them. So it is
    raised again every second until it has left this block. From then on no signal disturbs the closing of the run. The
    kernel ends the process after CLOSING_SECONDS: an interrupted library may hold a lock for ever.
    """
    raised: list[BaseException] = []

    def stop(number: int, frame: object) -> None:
        raised.append(SystemExit(143) if number == signal.SIGTERM else KeyboardInterrupt())
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        raise raised[0]

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, CLOSING_SECONDS if raised else 0.0)
        if raised:
            before = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN, signal.SIGALRM: signal.SIG_DFL}
        for number, handler in before.items():
            signal.signal(number, handler)
