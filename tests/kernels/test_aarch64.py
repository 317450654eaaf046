"""The portable path on another processor: cross-compiled, and run by an emulator. Skips where these are not installed."""

import platform
import shutil
import subprocess

import pytest

from kernels import build
from pruneonce.errors import KernelsError

SOURCES = ("tests/kernels/check.c", "kernels/path.c", "kernels/sparse.c")


def check(folder, target: str, *run: str) -> str:
    """What tests/kernels/check.c says, built for an architecture."""
    compiler, program = build.find_compiler(target), str(folder / "check")
    static = ["-target", f"{target}-linux-musl"] if build.is_zig(compiler) else []
    flags = [*build.COMPILE, *build.RELEASE.compile, "-DPATH=portable", "-Ikernels", "-static"]
    build.run([*compiler, *static, *flags, *SOURCES, "-lm", "-o", program])
    done = subprocess.run([*run, program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_portable_path_here(tmp_path):
    assert check(tmp_path, platform.machine()).startswith("96 shapes of products")


def test_the_portable_path_on_aarch64(tmp_path):
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("no qemu-aarch64: apt-get install qemu-user")
    try:
        build.find_compiler("aarch64")
    except KernelsError:
        pytest.skip("no compiler for aarch64: apt-get install gcc-aarch64-linux-gnu, or pip install ziglang")
    assert check(tmp_path, "aarch64", emulator).startswith("96 shapes of products")
