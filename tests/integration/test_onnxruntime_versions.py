"""What ships, in ONNX Runtimes of other years: the oldest that knows the operators, and one in between.

The newest is that of requirements.lock, which every other test runs. 1.16 knows neither opset 20 nor what the sparse
kernels need.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pruneonce
from pruneonce.deployment import embeddings, packing
from tests.conftest import ROOT, token_batch
from tests.integration.test_packaging import Environment, needed

OLDER = {"1.17.0": ["numpy<2"], "1.24.4": ["numpy"]}  # with what it needs; 1.17 and 1.18 are built for numpy 1
TOO_OLD = "1.16.3"

PROGRAM = """
import json, sys
import numpy as np
import onnxruntime
import pruneonce
model, execution, feeds = sys.argv[1], sys.argv[2], {name: np.array(rows) for name, rows in json.loads(sys.argv[3]).items()}
logits = pruneonce.load(model, threads=1, execution=execution).run(["logits"], feeds)[0]
print(json.dumps([onnxruntime.__version__, logits.tolist()]))
"""


@pytest.fixture(scope="module")
def index() -> None:
    """Skips without a package index, and for no other reason."""
    asked = [sys.executable, "-m", "pip", "index", "versions", "onnxruntime"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"no package index: {done.stderr.strip()[-200:]}")


def install(python: Path, *words: str) -> None:
    """By pip, for that python."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=OLDER)
def older(request, index, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """(version, the python of an environment of its own with that ONNX Runtime and no more than it needs)."""
    folder = tmp_path_factory.mktemp(f"onnxruntime-{request.param}")
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    install(python, f"onnxruntime=={request.param}", *OLDER[request.param])
    for name in needed(["onnx", "onnx-ir"]) - {"numpy"}:
        Environment(folder).link(name)
    yield request.param, python
    shutil.rmtree(folder)  # pytest keeps its folders: 100 MB of each version


@pytest.fixture(scope="module")
def shipped(dense_onnx, int8_onnx, tmp_path_factory) -> dict[str, Path]:
    """A tiny model of every kind that ships: fp32, int8 with int8 tables, the same packed."""
    folder = tmp_path_factory.mktemp("shipped")
    files = {name: folder / name for name in ("fp32.onnx", "int8.onnx", "int8.packed")}
    shutil.copy(dense_onnx.path, files["fp32.onnx"])
    shutil.copy(int8_onnx.path, files["int8.onnx"])
    assert len(embeddings.quantize(files["int8.onnx"])) == 2
    packing.pack(files["int8.onnx"], files["int8.packed"])
    return files


def run(
    python: Path, model: Path, execution: str, feeds: dict[str, np.ndarray], *folders: Path
) -> subprocess.CompletedProcess[str]:
    """PROGRAM, with modules out of these folders first."""
    given = json.dumps({name: rows.tolist() for name, rows in feeds.items()})
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*folders, ROOT)))}
    command = [str(python), "-c", PROGRAM, str(model), execution, given]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def tokens() -> dict[str, np.ndarray]:
    batch = token_batch(7, 3, 12)
    return {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "execution", "near"),
    [
        ("fp32.onnx", "stock", 1e-5),
        ("int8.onnx", "stock", 0.05),
        ("int8.packed", "stock", 0.05),
        ("int8.onnx", "sparse", 0.05),
    ],
)
def test_an_older_onnx_runtime_gives_the_same_answers(older, shipped, file, execution, near):
    """near: a fraction of the largest logit; int8 grids may flip by rounding."""
    version, python = older
    done = run(python, shipped[file], execution, tokens())
    assert done.returncode == 0, done.stderr
    expected = pruneonce.load(shipped[file], threads=1, execution=execution).run(["logits"], tokens())[0]
    ran, found = json.loads(done.stdout)
    assert ran == version
    np.testing.assert_allclose(np.array(found), expected, rtol=0, atol=near * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("older", list(OLDER)[:1], indirect=True)
def test_the_kernels_refuse_an_onnx_runtime_that_is_too_old(older, shipped, tmp_path):
    """It lies in front of the one of that environment, whose numpy it takes too."""
    install(older[1], "--target", str(tmp_path), f"onnxruntime=={TOO_OLD}")
    done = run(older[1], shipped["int8.onnx"], "sparse", tokens(), tmp_path)
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith(f"pruneonce.errors.KernelsError: expected operators for ONNX Runtime {TOO_OLD}, found: ")
    assert "pruneonce: expected ONNX Runtime 1.17 or newer, found an older one." in said
