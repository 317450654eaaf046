"""How a stage ended: by itself, or by the system. A flow starts a stage again only after the system ended it.

The status of a shell says enough of one process. A launcher such as torchrun exits with 1 whatever ended its processes. So
each process of a stage notes in a file that it began, and how it ended. One that was killed leaves no second note.
"""

import contextlib
import os
import signal
from collections.abc import Iterator

NOTES = "PRUNEONCE_NOTES"  # set by the flow: the file; each try of a stage has its own
TEMPORARY = 75  # EX_TEMPFAIL of sysexits.h: what a stage exits with when memory or a disk failed under it
BY_SYSTEM = {
    signal.SIGKILL: "killed (SIGKILL), as when memory runs out",
    signal.SIGTERM: "ended (SIGTERM)",
    signal.SIGSEGV: "it read memory that is not its own (SIGSEGV)",
    signal.SIGBUS: "its memory or its disk went away (SIGBUS)",
    signal.SIGABRT: "a library gave up (SIGABRT)",
}
FAILED = "memory or a disk failed under it, as it says above"
SILENT = "one of its processes was killed"


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Note that this process of a stage began, and how it ends; nothing without a flow."""
    if not (file := os.environ.get(NOTES)):
        yield
        return

    def note(word: object) -> None:
        with contextlib.suppress(OSError), open(file, "a", encoding="ascii") as notes:  # the stage goes on without it
            notes.write(f"{os.getpid()} {word}\n")

    note("began")
    try:
        yield
    except SystemExit as exit:
        note("told" if isinstance(exit.code, str) else exit.code or 0)
        raise
    except BaseException:
        note("raised")
        raise
    note(0)


def by_system(status: int, notes: str) -> str:
    """How the system ended a stage, in words; "" if the stage ended by itself, with a message or by Ctrl-C.

    status: of the shell, -9 or 137 for SIGKILL. notes: what the processes of the stage have noted.
    """
    if status == TEMPORARY:
        return FAILED
    number = -status if status < 0 else status - 128
    if number in BY_SYSTEM:
        return BY_SYSTEM[signal.Signals(number)]
    return _under_launcher(notes) if status == 1 else ""


def _under_launcher(notes: str) -> str:
    """What processes that a launcher started died of. An error with a message counts more than what it led to."""
    lines = [words for line in notes.splitlines() if len(words := line.split()) == 2]  # a full disk cuts one short
    ends = {pid: end for pid, end in lines if end != "began"}
    if "told" in ends.values():
        return ""
    if any(pid not in ends for pid, _ in lines):
        return SILENT
    if str(TEMPORARY) in ends.values():
        return FAILED
    by_signal = str(128 + signal.SIGTERM) in ends.values() and "raised" not in ends.values()
    return BY_SYSTEM[signal.SIGTERM] if by_signal else ""
