"""Resident memory of a session, measured in a process of its own that holds nothing else. Needs Linux, and no torch."""

import io
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pruneonce.deployment import execution

PROCESSES = 3  # one alone may be off by 25 MB


def resident_bytes(model: Path, inputs: Mapping[str, Any], *, threads: int, execution: str) -> int:
    """The resident memory that loading a model and one call add to a process: the median of `PROCESSES`.

    inputs: arrays of the call, by name. execution: of `execution.EXECUTIONS`.
    """
    given = io.BytesIO()
    np.savez(given, **inputs)
    words = [sys.executable, "-m", __name__, str(model), str(threads), execution]
    done = [subprocess.run(words, input=given.getvalue(), stdout=subprocess.PIPE, check=True) for _ in range(PROCESSES)]
    return int(median(int(one.stdout) for one in done))


def main() -> None:
    """In that process: the inputs come from standard input."""
    model, threads, how = sys.argv[1:]
    inputs = dict(np.load(io.BytesIO(sys.stdin.buffer.read())))
    before = _resident()
    session = execution.session(Path(model), threads=int(threads), execution=how)
    session.run(None, inputs)
    print(_resident() - before)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
