"""The library of the kernels, built here and where there is no compiler: its bytes, and what it asks of a system."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
from transformers.utils import import_utils

from kernels import build
from pruneonce.errors import KernelsError
from tests import elf
from tests.conftest import ROOT, copy_project
from tests.integration.test_packaging import Environment, package
from tests.kernels import conftest
from tests.unit.test_kernels_build import fake

MACHINE = platform.machine()
MAKE = shutil.which("make")


def run(*words: object, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    line = list(map(str, words))
    return subprocess.run(line, cwd=cwd, env={**env, **variables}, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """By the compiler of the machine that runs the tests."""
    output = tmp_path_factory.mktemp("library") / "kernels.so"
    done = run(sys.executable, "-m", "kernels.build", "--output", output)
    assert (done.returncode, done.stderr) == (0, ""), "an error, or a warning"
    return output


def bare_environment(folder: Path) -> Environment:
    """What `make install` builds with on a bare machine: pip and setuptools."""
    made = Environment(folder)
    venv.create(folder, symlinks=True)
    for name in ("pip", "setuptools"):
        made.link(name)
    return made


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder with what the build reads, and the environment that runs the tests."""
    for name in ("Makefile", "kernels", "pruneonce/__init__.py", "pruneonce/errors.py", "pruneonce/terminal.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    return tmp_path


def make(project: Path, **variables: str) -> str:
    """What `make install` says when it comes to the library: nothing where there is nothing to do."""
    name = build.LIBRARY.relative_to(ROOT)
    done = run(MAKE, "--silent", "-o", ".venv/installed", name, cwd=project, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_same_sources_give_the_same_bytes_in_another_folder(library, project):
    make(project)
    assert (project / "pruneonce/deployment/kernels.so").read_bytes() == library.read_bytes()
    assert str(ROOT).encode() not in library.read_bytes()


def test_it_asks_for_the_c_library_alone(library):
    found = elf.read(library)
    assert found.machine == MACHINE
    assert found.exported == {"RegisterCustomOps", "pruneonce_processor"}
    assert "libc.so.6" in found.needed <= {"libc.so.6", "libm.so.6"}
    assert "free" in found.imported
    assert not any(name.startswith(("pthread", "__cpu")) for name in found.imported)
    assert found.glibc <= tuple(map(int, platform.libc_ver()[1].split(".")))


def test_onnx_runtime_takes_it(library):
    onnxruntime.SessionOptions().register_custom_ops_library(str(library))


def test_with_sanitizers_it_needs_their_libraries_and_a_compiler_that_has_them(tmp_path, tmp_path_factory):
    output = tmp_path / "checked.so"
    if not build.is_zig(build.find_compiler(MACHINE)):
        checked = conftest.compiled("sanitized", conftest.CHECKED, tmp_path_factory)
        assert {name.partition(".")[0] for name in elf.read(checked).needed} >= {"libasan", "libubsan"}
    with pytest.raises(KernelsError, match="found ziglang"):
        build.build(output, compiler=build.ZIG, target=MACHINE, flags=build.SANITIZED)
    assert not output.exists()


def date(path: Path, seconds: int) -> None:
    os.utime(path, (seconds, seconds))


def test_make_builds_it_for_newer_sources_only(project):
    made = project / "pruneonce/deployment/kernels.so"
    sources = set((project / "kernels").glob("*.*"))
    compiler = shlex.join(fake(project, "cc"))  # a fast one
    assert "built by" in make(project, CC=compiler)
    for source in sources:
        date(source, 1000)
    assert {source.suffix for source in sources} == {".c", ".h", ".py"}
    for source in sources:
        date(made, 2000)
        assert make(project, CC=compiler) == ""
        date(source, 3000)
        assert "built by" in make(project, CC=compiler), source.name
        date(source, 1000)
    assert set((project / "kernels").glob("*.*")) == sources, "DVC would count what a build leaves there"


def test_make_goes_on_without_it_and_says_so_in_one_line(project):
    """With a compiler that takes nothing; with none, and no ziglang on the package index."""
    made = project / "pruneonce/deployment/kernels.so"
    make(project, CC=shlex.join(fake(project, "cc")))
    date(made, 1000)
    assert make(project, CC="false").startswith("KernelsError: expected that this compiles: false ")
    (project / ".venv").unlink()
    bare_environment(project / ".venv")
    *_, said = make(project, PATH="", CC="", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(project)).splitlines()
    assert said.startswith("KernelsError: expected a C compiler, or ziglang==")
    assert said.endswith("Until then everything works without the sparse kernels.")
    assert not made.exists()


def test_transformers_does_not_take_the_folder_for_a_package():
    assert not import_utils.is_kernels_available()
    assert not (ROOT / "kernels/__init__.py").exists(), "it would hide a package of that name that is installed"


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Iterator[Environment]:
    """A machine without a compiler, with pip and setuptools. Skips without a package index, and for no other reason."""
    asked = run(sys.executable, "-m", "pip", "index", "versions", "ziglang")
    if asked.returncode:
        pytest.skip(f"no package index: {asked.stderr.strip()[-200:]}")
    made = bare_environment(tmp_path_factory.mktemp("bare"))
    yield made
    shutil.rmtree(made.folder)  # pytest keeps its folders, and this one has 440 MB


@pytest.mark.slow
def test_a_machine_without_a_compiler_takes_that_of_ziglang(bare, tmp_path):
    """As `make install` does. It runs on any system with glibc 2.17."""
    python = bare.folder / "bin/python"
    command = (python, "-m", "kernels.build", "--output")
    outputs = [tmp_path / name for name in ("first.so", "second.so", "aarch64.so")]
    for output, words in zip(outputs, (["--install-zig"], ["--install-zig"], ["--target", "aarch64"]), strict=True):
        done = run(*command, output, *words, PATH="", CC="")
        assert (done.returncode, done.stderr) == (0, "")
        assert ("pip installs" in done.stdout) == (output.name == "first.so")
    first, second, aarch64 = outputs
    assert first.read_bytes() == second.read_bytes()
    assert (elf.read(first).machine, elf.read(aarch64).machine) == (MACHINE, "aarch64")
    for library in (first, aarch64):
        found = elf.read(library)
        assert found.exported == {"RegisterCustomOps", "pruneonce_processor"}
        assert "libc.so.6" in found.needed <= {"libc.so.6", "libm.so.6"}
        assert found.glibc <= (2, 17)
    onnxruntime.SessionOptions().register_custom_ops_library(str(first))

    wheel = package("wheel", copy_project(tmp_path / "checkout"), tmp_path / "wheel", python=python, PATH="", CC="")
    assert wheel.name.endswith(f"-py3-none-manylinux_2_17_{MACHINE}.whl")
