"""How Ctrl-C and SIGTERM end a stage, and the environment variables that a flow and its stages share.

The standard library alone is imported here: a flow listens for Ctrl-C while everything else is imported.
"""

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

PARENT = "PRUNEONCE_PARENT_RUN"  # set by the flow: the id of its MLflow run; never changes an out
RAN = "PRUNEONCE_RAN"  # set by the flow: a file that a stage touches when its work is done
STEP_SECONDS = 3.0  # a training that is to stop has this long to end its step, and then saves its state
CLOSING_SECONDS = 5.0  # a stopped stage has this long to close its MLflow run


@dataclass
class Stop:
    """Whether Ctrl-C or SIGTERM has asked this process to stop. `stoppable` sets it."""

    error: BaseException | None = None
    patient_until: float = 0.0  # a training that ended a step just now will look at `asked` soon

    @property
    def asked(self) -> bool:
        return self.error is not None

    def after_step(self) -> None:
        """A step has ended. Raises KeyboardInterrupt or SystemExit(143) if the process is to stop."""
        if self.error:
            raise self.error
        self.be_patient()

    def be_patient(self) -> None:
        """From here on a signal waits for the end of a step, but not for long."""
        self.patient_until = time.monotonic() + STEP_SECONDS

    def wait_for_no_step(self) -> None:
        """From here on nothing is raised by a timer: a state is being saved."""
        if self.error:
            signal.setitimer(signal.ITIMER_REAL, 0.0)


@contextlib.contextmanager
def stoppable(stop: Stop | None = None) -> Iterator[None]:
    """Ctrl-C and SIGTERM end what runs inside, as KeyboardInterrupt and as SystemExit(143).

    A training that ends a step within STEP_SECONDS leaves by `stop` at the end of it. Ctrl-C a second time does not wait.
    Python drops an exception that is raised in a finalizer or a callback, and a training step has many of them. So it is
    raised again every second until it has left this block. From then on no signal disturbs the closing of the run. The
    kernel ends the process after CLOSING_SECONDS: an interrupted library may hold a lock for ever.
    """
    asked = stop or Stop()

    def hear(number: int, frame: object) -> None:
        first = asked.error is None
        if asked.error is None:
            asked.error = SystemExit(143) if number == signal.SIGTERM else KeyboardInterrupt()
        if first and time.monotonic() < asked.patient_until:
            signal.setitimer(signal.ITIMER_REAL, STEP_SECONDS, 1.0)
            return
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        raise asked.error

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, CLOSING_SECONDS if asked.error else 0.0)
        if asked.error:
            before = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN, signal.SIGALRM: signal.SIG_DFL}
        for number, handler in before.items():
            signal.signal(number, handler)
