"""This machine as results name it: the processor, its cores, and the versions of the packages that compute."""

import os
import platform
from importlib import metadata
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
NAMES = ("model name", "Processor", "CPU part")  # of the processor in that file: x86, older ARM, ARM
COMPUTE = ("accelerate", "datasets", "numpy", "onnx", "onnxruntime", "pruneonce", "tokenizers", "torch", "transformers")


def processor(cpuinfo: Path = CPUINFO) -> str:
    """The processor's name, as its maker writes it."""
    try:
        rows = [line.partition(":") for line in cpuinfo.read_text(errors="replace").splitlines()]
    except OSError:  # not Linux
        rows = []
    known = {key.strip(): value.strip() for key, _, value in reversed(rows)}
    return next((known[name] for name in NAMES if known.get(name)), platform.processor() or platform.machine())


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Package -> version, of those that are installed."""
    found = {}
    for package in COMPUTE:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), **found}
