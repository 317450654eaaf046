"""Imports point one way, and each tool has one home."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.tiny import ROOT

ERRORS = "pruneonce.errors"
MAY = {
    "flows": ("flows", "pipeline", ERRORS),
    "stages": ("pipeline", "pruneonce"),  # never another stage
    "pipeline": ("pipeline", ERRORS),
    "pruneonce": ("pruneonce",),
}
# Science behind a command: packing needs numpy and zlib, no torch; what `plan` needs is imported when it is asked for.
ALSO = {
    "pipeline/cli.py": ("pruneonce.packing", "pruneonce.unpacking"),
    "pipeline/costs.py": ("pruneonce.planning",),
    "pipeline/inventory.py": ("pruneonce.sources", "pruneonce.tables"),
    "pipeline/plan.py": ("pruneonce.planning", "pruneonce.pruning"),
}
HOME = {
    "prefect": "flows/",
    "dvc": "flows/",
    "mlflow": ("pipeline/tracking.py", "pipeline/registry.py"),
    "onnx": ("pruneonce/", "pipeline/registry.py"),  # MLflow's registry takes a model of it
    **dict.fromkeys(("torch", "transformers", "onnxruntime"), "pruneonce/"),
    **dict.fromkeys(("accelerate", "datasets", "safetensors", "onnxscript", "pyarrow", "numpy"), "pruneonce/"),
    **dict.fromkeys(("matplotlib", "scipy", "seqeval", "sklearn"), "pruneonce/"),
}
FILES = sorted(path.relative_to(ROOT).as_posix() for package in MAY for path in (ROOT / package).rglob("*.py"))


def imports(file: Path) -> Iterator[str]:
    """Dotted names, also of imports inside functions: `from pruneonce import errors` is pruneonce.errors."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            bare = node.module in MAY
            yield from (f"{node.module}.{alias.name}" if bare else node.module for alias in node.names)


def below(name: str, root: str) -> bool:
    return name == root or name.startswith(f"{root}.")


def against_the_arrows(file: str, names: list[str]) -> list[str]:
    """What `file` imports and must not."""
    may = (*MAY[file.split("/")[0]], *ALSO.get(file, ()))
    wrong = [n for n in names if n.split(".")[0] in MAY and not any(below(n, root) for root in may)]
    wrong += [n for n in names if not file.startswith(HOME.get(n.split(".")[0], ""))]
    return wrong + [n for n in names if n.split(".")[0] == "importlib"]  # would hide an arrow


def test_there_are_files_to_look_at():
    assert len(FILES) >= 40
    assert {file.split("/")[0] for file in FILES} == set(MAY)
    found = {name.split(".")[0] for file in FILES for name in imports(ROOT / file)}
    assert set(HOME) <= found, "a tool that nobody imports has no home to guard"


@pytest.mark.parametrize("file", FILES)
def test_imports_follow_the_arrows(file):
    assert against_the_arrows(file, list(imports(ROOT / file))) == []


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("stages/export.py", "stages.report"),
        ("stages/export.py", "flows.compress"),
        ("stages/export.py", "torch.nn"),
        ("stages/export.py", "mlflow"),
        ("pipeline/params.py", "pruneonce.pruning"),
        ("pipeline/params.py", "stages.export"),
        ("pipeline/params.py", "pruneonce.packing"),
        ("pipeline/cli.py", "pruneonce.exporting"),
        ("pipeline/cli.py", "pruneonce.planning"),
        ("pipeline/plan.py", "torch"),
        ("pipeline/stage.py", "mlflow"),
        ("flows/compress.py", "stages.export"),
        ("flows/compress.py", "pruneonce"),
        ("pruneonce/pruning.py", "pipeline.params"),
        ("pruneonce/pruning.py", "prefect"),
        ("pipeline/lineage.py", "dvc.repo"),
    ],
)
def test_a_wrong_arrow_would_be_seen(file, name):
    assert against_the_arrows(file, [name]) == [name]


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("pipeline.stage", ("torch", "transformers", "prefect", "dvc")),
        ("pipeline.lineage", ("torch", "prefect", "dvc", "mlflow")),
        ("pipeline.params", ("torch", "prefect", "dvc", "mlflow")),
        ("pipeline.cli", ("torch", "onnx", "onnxruntime", "prefect", "dvc", "mlflow")),
        ("pruneonce", ("torch", "onnx", "onnxruntime", "numpy")),
        ("pruneonce.runtime", ("torch", "transformers", "accelerate")),
        ("stages.fetch", ("torch", "transformers", "prefect", "dvc")),
        ("stages.report", ("torch", "transformers", "prefect", "dvc")),
        ("stages.study_table", ("torch", "transformers", "prefect", "dvc", "matplotlib")),
        ("flows.compress", ("torch", "transformers", "mlflow")),
    ],
)
def test_importing_stays_light(module, without):
    code = f"import sys, {module}; print(*{{n.split('.')[0] for n in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert module.split(".")[0] in loaded
    assert loaded.isdisjoint(without)
