"""The kernels' library, compiled once: with every function exported, and for the sanitizers."""

import os
import platform
from pathlib import Path

import pytest
from filelock import FileLock

from kernels import build
from tests.kernels.native import NAMES, Library

EXPORTED = ("-fvisibility=default",)
CHECKED = build.Flags((*build.SANITIZED.compile, *EXPORTED), build.SANITIZED.link)
GIVEN = "PRUNEONCE_TEST_LIBRARY"  # a library that is there already: the one for the sanitizers


def compiled(name: str, flags: build.Flags, tmp_path_factory) -> Path:
    """The library of that name, compiled by the first worker of pytest that asks for it."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with FileLock(folder / f"{name}.lock"):
        if not (library := folder / f"{name}.so").exists():
            target = platform.machine()
            build.build(library, compiler=build.find_compiler(target), target=target, flags=flags)
    return library


@pytest.fixture(scope="session")
def library_file(tmp_path_factory) -> Path:
    if GIVEN in os.environ:
        return Path(os.environ[GIVEN])
    exported = build.Flags((*build.RELEASE.compile, *EXPORTED), ())
    return compiled("exported", exported, tmp_path_factory)


@pytest.fixture(scope="session")
def library(library_file) -> Library:
    return Library(library_file)


@pytest.fixture(params=NAMES)
def path_name(request, library, monkeypatch) -> str:
    """The name of a path, which sessions of this test use."""
    if request.param not in library.paths:
        pytest.skip(f"this processor does not run {request.param}")
    monkeypatch.setenv("PRUNEONCE_PATH", request.param)
    return request.param
