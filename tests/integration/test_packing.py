"""What ships, from the tiny pipeline: packed and unpacked by the command line, loaded without a file."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pruneonce
from pruneonce.deployment import execution
from tests.integration.tiny import ROOT, TASK


@pytest.fixture
def int8(first, tmp_path) -> Path:
    """A copy, alone in a folder."""
    path = tmp_path / "int8.onnx"
    path.write_bytes(first[f"export/{TASK}/int8.onnx"].read_bytes())
    return path


def command(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pruneonce.command", *map(str, words)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def test_pack_and_unpack_give_the_same_bytes(int8, tmp_path):
    done = command("pack", "int8.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    packed = tmp_path / "int8.packed"
    assert done.stdout == f"int8.onnx  {int8.stat().st_size} bytes -> int8.packed  {packed.stat().st_size} bytes\n"
    assert packed.stat().st_size < int8.stat().st_size / 2
    assert command("unpack", "int8.packed", "back.onnx", cwd=tmp_path).returncode == 0
    assert (tmp_path / "back.onnx").read_bytes() == int8.read_bytes()
    int8.unlink()
    assert command("unpack", "int8.packed", cwd=tmp_path).returncode == 0
    assert int8.read_bytes() == (tmp_path / "back.onnx").read_bytes()


@pytest.mark.parametrize("words", [("pack", "no.onnx"), ("unpack", "int8.onnx"), ("pack", "text"), ("unpack", "cut.packed")])
def test_a_mistake_is_one_line(int8, tmp_path, words):
    (tmp_path / "text").write_text("hello\n")
    command("pack", "int8.onnx", "cut.packed", cwd=tmp_path)
    (tmp_path / "cut.packed").write_bytes((tmp_path / "cut.packed").read_bytes()[:-7])
    before = sorted(tmp_path.iterdir())
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("PackError: expected ")
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("how", "near"), [("stock", 1e-5), ("sparse", 0.05)])
def test_a_packed_model_answers_without_touching_the_disk(int8, tmp_path, how, near):
    """In a process of its own that may open nothing for writing, and that needs no torch.

    near: a fraction of the largest logit; the sparse kernels differ by rounding.
    """
    command("pack", "int8.onnx", cwd=tmp_path)
    code = """
import sys
import numpy as np
def no_writing(event, args):
    writes = event == "open" and (set(str(args[1] or "r")) & set("wax+") or args[2] & 3)
    assert not writes and event not in ("os.mkdir", "os.rename", "tempfile.mkstemp", "tempfile.mkdtemp"), (event, args)
import pruneonce
assert "onnxruntime" not in sys.modules
sys.dont_write_bytecode = True
import onnxruntime
sys.addaudithook(no_writing)
session = pruneonce.load("int8.packed", threads=1, execution=sys.argv[1])
ids = np.array([[2, 7, 9, 11, 3]])
print(*session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0].ravel())
assert not {"torch", "tqdm"} & set(sys.modules)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, how], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ids = np.array([[2, 7, 9, 11, 3]])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    expected = execution.session(int8, threads=1, execution="stock").run(["logits"], feeds)[0]
    answer = np.array(done.stdout.split(), np.float32)
    np.testing.assert_allclose(answer, expected.ravel(), atol=near * np.abs(expected).max())
    from_file = pruneonce.load(int8, threads=1, execution=how).run(["logits"], feeds)[0]
    np.testing.assert_allclose(from_file.ravel(), answer, rtol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8.onnx", "int8.packed"]
