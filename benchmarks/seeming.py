"""Measure as if this processor were an older one: `cpuid` faults, and a preloaded library answers without newer bits.

A program and ONNX Runtime then take the code that they take on such a processor. Linux offers this where /proc/cpuinfo
names `cpuid_fault`.
"""

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kernels import build
from pruneonce.errors import KernelsError

KINDS = ("amx", "avx512vnni", "avxvnni", "avx2")  # newest first: each lacks one more, AMX, AVX-512, AVX-VNNI
SOURCE = Path(__file__).with_suffix(".c")
CPUINFO = Path("/proc/cpuinfo")


def seems() -> str | None:
    """Which of KINDS the processor seems to be to this process; None: what it is."""
    return os.environ.get("SEEMING")


def newer(kind: str) -> tuple[str, ...]:
    """The kinds that can seem to be this one."""
    return KINDS[: KINDS.index(kind)]


def plain_environment() -> dict[str, str]:
    """The environment of a process that shall see the processor as it is."""
    return {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "SEEMING")}


def run(kind: str, words: Sequence[str]) -> int:
    """Run a command of this Python on a processor that seems to be of that kind. Returns its exit code.

    Raises KernelsError where the processor cannot seem to be another one.
    """
    if "cpuid_fault" not in CPUINFO.read_text():
        raise KernelsError("expected a processor whose cpuid can fault, found another. Name this one's kind: --processor.")
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/seeming.so"
        compiler = build.find_compiler(platform.machine())
        build.run([*compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", str(SOURCE), "-o", library])
        env = {**os.environ, "LD_PRELOAD": library, "SEEMING": kind}
        return subprocess.run([sys.executable, *words], env=env).returncode
