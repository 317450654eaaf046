"""The sparse kernels: their library, the path that this processor takes, and whether a compiler could build it."""

import ctypes
import os
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from pruneonce.deployment import costs
from pruneonce.doctor.findings import NOTE, OK, PROBLEM, Finding

LIBRARY = Path(__file__).parents[1] / "deployment/kernels.so"
BUILD = "Build it: `python -m kernels.build` in a clone, or `pip install .` with a C compiler."


def library(path: Path = LIBRARY) -> Iterator[Finding]:
    """Whether the library is there and can be loaded, and which path it takes."""
    if not path.exists():
        yield Finding("kernels", NOTE, f"no library at {path}: zeros save no time", BUILD)
        return
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.pruneonce_processor.restype = ctypes.c_char_p
        taken = loaded.pruneonce_processor().decode()
    except (OSError, AttributeError) as error:
        yield Finding("kernels", PROBLEM, f"{path} cannot be loaded: {error}", BUILD)
        return
    if taken in costs.COSTS:
        yield Finding("kernels", OK, f"{taken}: `auto` gives each matrix to the faster kernel, by measured costs")
    else:
        yield Finding(
            "kernels",
            NOTE,
            f"{taken}: no cost was measured here, so `auto` is stock",
            "Try --execution sparse, and measure.",
        )
    if named := os.environ.get("PRUNEONCE_PATH"):
        yield Finding("kernels", NOTE, f"PRUNEONCE_PATH={named} names another path, for tests", "Unset it.")


def compiler() -> Iterator[Finding]:
    """The compiler that would build the library. Only a note where there is none: everything works without."""
    if words := os.environ.get("CC"):
        yield Finding("compiler", OK, f"{words}, from CC")
        return
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            yield Finding("compiler", OK, path)
            return
    try:
        yield Finding("compiler", OK, f"ziglang {metadata.version('ziglang')}")
    except metadata.PackageNotFoundError:
        yield Finding(
            "compiler", NOTE, "no cc, gcc, clang or ziglang", "To build the sparse kernels, install gcc 11 or clang 12."
        )
