"""The programs of docs/deployment.md that run what `pruneonce accelerate` writes, in Python and in C, without pruneonce."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from kernels import build
from pruneonce.deployment import execution
from tests.pages import blocks

PAGE = "docs/deployment.md"
# What the C program uses of ONNX Runtime's header, which no package holds: slot of OrtApi -> function.
SLOTS = {
    2: "const char *(*GetErrorMessage)(const OrtStatus *)",
    3: "OrtStatus *(*CreateEnv)(int, const char *, OrtEnv **)",
    7: "OrtStatus *(*CreateSession)(const OrtEnv *, const char *, const OrtSessionOptions *, OrtSession **)",
    10: "OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **)",
    30: "OrtStatus *(*SessionGetInputCount)(const OrtSession *, size_t *)",
    228: "OrtStatus *(*RegisterCustomOpsLibrary_V2)(OrtSessionOptions *, const char *)",
}


def header() -> str:
    types = "\n".join(f"typedef struct Ort{name} Ort{name};" for name in ("Status", "Env", "Session", "SessionOptions"))
    fields = "\n".join(f"    {SLOTS.get(i, f'void *slot{i}')};" for i in range(max(SLOTS) + 1))
    return f"""
#include <stddef.h>
#include <stdint.h>
enum {{ ORT_API_VERSION = 17, ORT_LOGGING_LEVEL_WARNING = 2 }};
{types}
typedef struct {{
{fields}
}} OrtApi;
typedef struct {{
    const OrtApi *(*GetApi)(uint32_t);
}} OrtApiBase;
const OrtApiBase *OrtGetApiBase(void);
"""


@pytest.fixture
def shipped(int8_onnx, tmp_path) -> Path:
    """A folder with the library and a file for it."""
    made = execution.accelerated(int8_onnx.path, execution="sparse", threads=1)
    (tmp_path / "accelerated.onnx").write_bytes(made)
    shutil.copy(execution.LIBRARY, tmp_path)
    return tmp_path


def test_the_python_program_needs_onnx_runtime_alone(shipped, int8_onnx):
    (program,) = [block for block in blocks("python", PAGE) if "register_custom_ops_library" in block]
    only = "\nimport sys; assert not {'pruneonce', 'torch', 'onnx'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", program + only], cwd=shipped, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    found = [float(word) for word in done.stdout.translate({ord("["): " ", ord("]"): " "}).split()]
    ids = np.array([[2, 7, 9, 11, 3]])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    (expected,) = execution.session(int8_onnx.path, threads=1, execution="stock").run(["logits"], feeds)
    np.testing.assert_allclose(found, expected[0], atol=0.05 * np.abs(expected).max())


def test_the_c_program_makes_the_session(shipped):
    """Compiled with the declarations above, and run with the library of the ONNX Runtime that runs the tests."""
    (program,) = blocks("c", PAGE)
    (shipped / "onnxruntime_c_api.h").write_text(header())
    (shipped / "program.c").write_text(program)
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    (shipped / "libonnxruntime.so.1").symlink_to(library)
    compiler = [*build.find_compiler(platform.machine()), "-std=c11", "-Wall", "-Werror", "-I.", "-Wl,-rpath,$ORIGIN"]
    subprocess.run([*compiler, "program.c", "./libonnxruntime.so.1", "-o", "program"], cwd=shipped, check=True)
    done = subprocess.run(["./program"], cwd=shipped, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 inputs\n", "")
    (shipped / "kernels.so").unlink()
    done = subprocess.run(["./program"], cwd=shipped, capture_output=True, text=True)
    assert done.returncode == 1
    assert "kernels.so" in done.stderr
