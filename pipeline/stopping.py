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
    saving: bool = False  # its state; nothing is raised meanwhile

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
        if not self.error:
            self.patient_until = time.monotonic() + STEP_SECONDS

    @contextlib.contextmanager
    def saved_first(self) -> Iterator[None]:
        """While the block runs, a signal is only noted: a state is being saved."""
        self.saving = True
        try:
            yield
        finally:
            self.saving = False


@contextlib.contextmanager
def stoppable(stop: Stop | None = None) -> Iterator[None]:
    """Ctrl-C and SIGTERM end what runs inside, as KeyboardInterrupt and as SystemExit(143).

    A training that ends its step within STEP_SECONDS saves its state and leaves by `stop`. A second Ctrl-C does not wait for
    the step; a SIGTERM after it is the flow's, and does.
    Python drops an exception that is raised in a finalizer or a callback, and a training step has many of them. So it is
    raised again every second until it has left this block. From then on no signal disturbs the closing of the run. The
    kernel ends the process after CLOSING_SECONDS: an interrupted library may hold a lock for ever.
    """
    asked = stop or Stop()

    def hear(number: int, frame: object) -> None:
        again = number == signal.SIGINT and asked.error is not None
        if asked.error is None:
            asked.error = SystemExit(143) if number == signal.SIGTERM else KeyboardInterrupt()
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        if not asked.saving and (again or time.monotonic() >= asked.patient_until):
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
