"""How a command ends: its output is written, an error is one line, the exit code fits."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator

from pruneonce.errors import PruneOnceError, plain


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Show a PruneOnceError as one line with exit code 1, and Ctrl-C as one line with exit code 130."""
    try:
        yield
    except PruneOnceError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        print("\nStopped by Ctrl-C.", file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def flushed_output() -> Iterator[None]:
    """Write out at the end what was printed inside.

    A reader that has left, as `head` does, gives exit code 141 and no message. That is the code of SIGPIPE. The signal
    itself would also end this process where a server closes a connection.
    Any other OSError, such as a full disk, gives one line and exit code 1.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may be no text, and a terminal not UTF-8
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # None: closed by the caller's shell
                sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        _discard_output()
        sys.exit(plain(f"DataError: expected files that can be read and written, found: {error}"))


def _discard_output() -> None:
    """Send unwritten output nowhere. Python would try again at exit and print a second error."""
    with contextlib.suppress(OSError, ValueError):  # a stream of a test has no file number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
