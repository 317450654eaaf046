"""The tests of this folder once more, with gcc's checks of memory and of undefined behaviour in the library."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import build
from tests.kernels import conftest

FILES = ("test_paths.py", "test_operators.py", "test_bad_operators.py", "test_abi.py")


def test_memory_and_undefined_behaviour(tmp_path_factory):
    compiler = build.find_compiler(platform.machine())
    asked = [
        subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True)
        for name in ("libasan.so", "libstdc++.so")
    ]
    preloaded = [done.stdout.strip() for done in asked]
    if build.is_zig(compiler) or not all(Path(file).is_absolute() for file in preloaded):
        pytest.skip(f"no gcc with libasan and libstdc++: {' '.join(compiler)}")
    env = os.environ | {
        "LD_PRELOAD": ":".join(preloaded),  # the one of C++ too: ONNX Runtime throws
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        conftest.GIVEN: str(conftest.compiled("sanitized", conftest.CHECKED, tmp_path_factory)),
    }
    folder = Path(__file__).parent
    words = [
        "-m",
        "pytest",
        "-q",
        "-x",
        "--capture=no",
        f"--confcutdir={folder}",
        "-p",
        "no:cacheprovider",
        *(str(folder / name) for name in FILES),
    ]
    done = subprocess.run([sys.executable, *words], env=env, cwd=build.ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 500
