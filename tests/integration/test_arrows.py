"""Imports point one way, and each tool has one home."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.tiny import ROOT

METADATA = "importlib.metadata"  # imports nothing
BASICS = (
    "pruneonce.errors",
    "pruneonce.commandline",
    "pruneonce.terminal",
    "pruneonce.files",
    "pruneonce.doctor",
    "pruneonce.projects",
)  # where the code is; how any command ends; fsync, which all writers share
MAY = {
    "flows": ("flows", "pipeline", *BASICS),
    "stages": ("pipeline", "pruneonce"),  # never another stage
    "study": ("study", "pipeline", "pruneonce"),
    "pipeline": ("pipeline", *BASICS),
    "pruneonce": ("pruneonce",),
    "kernels": ("kernels", *BASICS),
}
# Science behind a command: what `plan` needs is imported when it is asked for. And commands that do more in a project.
ALSO = {
    "pipeline/commands/doctor.py": ("pruneonce.commands.doctor",),
    "pipeline/commands/completion.py": ("pruneonce.commands.completion", "pruneonce.command"),
    "pipeline/lineage/model_file.py": (  # what a model file holds, once one is asked about
        "pruneonce.deployment.about",
        "pruneonce.deployment.packing",
        "pruneonce.deployment.unpacking",
    ),
    "pipeline/plan/costs.py": (
        *("pruneonce.step_costs", "pruneonce.tasks.batches"),
        *("pruneonce.tasks.examples", "pruneonce.tasks.kinds"),
    ),
    "pipeline/plan/inventory.py": ("pruneonce.sources.folders", "pruneonce.sources.formats", "pruneonce.sources.tables"),
    "pipeline/plan/planned.py": ("pruneonce.step_costs", "pruneonce.sparsity.matrices", "pruneonce.sparsity.masks"),
    "pipeline/tracking/packaging.py": (
        "pruneonce",
        "pruneonce.deployment.about",
        "pruneonce.deployment.packing",
        "pruneonce.serving.predictor",
    ),
    "pipeline/commands/predict.py": ("pruneonce.commands",),
    "pipeline/tracking/served.py": ("pruneonce.serving.predictor",),
    "pipeline/plan/page.py": ("pruneonce.step_costs", "pruneonce.sparsity.matrices", "pruneonce.sparsity.masks"),
}
ALSO["pipeline/commands/init.py"] = ("pruneonce.sparse_import",)
ALSO["pipeline/projects/tasks.py"] = (
    *("pruneonce.columns", "pruneonce.sources.tables"),
    *("pruneonce.tasks.classes", "pruneonce.tasks.examples", "pruneonce.tasks.kinds"),
)
# Inside the library, package by package. What stands in pruneonce/ itself serves them all.
SHARED = {"errors", "terminal", "batch", "text", "engine", "files", "commandline", "projects"}
DOORS = {
    "__init__",
    "command",
    "commands",
    "doctor",
    "stage",
}  # by which a packed model is loaded, and packed: they serve no file of the library
ROOMS = {
    "sparsity": set(),
    "distillation": set(),
    "sources": set(),
    "quantization": {"sparsity"},
    "language": {"distillation", "sparsity"},
    "tasks": {"distillation", "sources", "models"},
    "models": {"sparsity", "language", "distillation"},
    "training": {"tasks", "models", "sparsity", "distillation"},
    "deployment": {"models", "quantization"},
    "answers": {"tasks"},
    "columns": {"sources"},
    "sparse_import": {"models", "sparsity"},
    "serving": {"deployment", "sources"},
    "step_costs": {"models", "language", "distillation", "sparsity"},
}
HOME = {
    "prefect": "flows/",
    "dvc": "flows/",
    "mlflow": "pipeline/tracking/",
    "vl_convert": ("pipeline/reporting/", "pipeline/sweep_page.py"),
    "jinja2": "pipeline/reporting/",
    "onnx": ("pruneonce/", "pipeline/tracking/registry.py"),  # MLflow's registry takes a model of it
    **dict.fromkeys(("transformers", "onnxruntime"), "pruneonce/"),
    "torch": ("pruneonce/", "study/"),
    **dict.fromkeys(("accelerate", "datasets", "safetensors", "onnxscript", "pyarrow"), "pruneonce/"),
    "seqeval": "pruneonce/",
    **dict.fromkeys(("matplotlib", "numpy", "scipy", "sklearn"), ("pruneonce/", "study/")),
}
FILES = sorted(path.relative_to(ROOT).as_posix() for package in MAY for path in (ROOT / package).rglob("*.py"))


def imports(file: Path) -> Iterator[str]:
    """Dotted names, also of imports inside functions: `from pruneonce import errors` is pruneonce.errors."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            bare = (ROOT / node.module.replace(".", "/")).is_dir() or node.module == "importlib"
            yield from (f"{node.module}.{alias.name}" if bare else node.module for alias in node.names)


def below(name: str, root: str) -> bool:
    return name == root or name.startswith(f"{root}.")


def against_the_arrows(file: str, names: list[str]) -> list[str]:
    """What `file` imports and must not."""
    may = (*MAY[file.split("/")[0]], *ALSO.get(file, ()))
    wrong = [n for n in names if n.split(".")[0] in MAY and not any(below(n, root) for root in may)]
    wrong += [n for n in names if not file.startswith(HOME.get(n.split(".")[0], ""))]
    return wrong + [n for n in names if n.split(".")[0] == "importlib" and n != METADATA]  # would hide an arrow


def test_there_are_files_to_look_at():
    assert len(FILES) >= 40
    assert {file.split("/")[0] for file in FILES} == set(MAY)
    found = {name.split(".")[0] for file in FILES for name in imports(ROOT / file)}
    assert set(HOME) <= found, "a tool that nobody imports has no home to guard"


@pytest.mark.parametrize("file", FILES)
def test_imports_follow_the_arrows(file):
    assert against_the_arrows(file, list(imports(ROOT / file))) == []


def rooms(file: str, names: list[str]) -> set[str]:
    """The packages of the library that a file of another one reads."""
    own = file.removeprefix("pruneonce/").removesuffix(".py").split("/")[0]
    found = {name.split(".")[1] for name in names if name.startswith("pruneonce.")}
    return found - SHARED - {own}


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("pruneonce/")])
def test_the_packages_of_the_library_follow_their_arrows(file):
    own = file.removeprefix("pruneonce/").removesuffix(".py").split("/")[0]
    allowed = {"deployment", "commands", "doctor", "serving"} if own in DOORS else ROOMS.get(own, set())
    assert rooms(file, list(imports(ROOT / file))) <= allowed
    assert own in ROOMS or own in SHARED or own in DOORS, "a room that has no arrows"


def modules_read(file: str) -> set[str]:
    """The files of ours that a file imports, also inside functions and for type checkers only."""
    names = list(imports(ROOT / file))
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in MAY:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    paths = {f"{name.replace('.', '/')}{end}" for name in names for end in (".py", "/__init__.py")}
    return {path for path in paths if path in FILES} - {file}


def test_no_file_reads_itself_through_others():
    graph = {file: modules_read(file) for file in FILES}
    assert sum(map(len, graph.values())) >= 150
    order = graphlib.TopologicalSorter(graph)
    order.prepare()  # raises CycleError, which names the cycle


def test_a_cycle_of_late_imports_would_be_seen(tmp_path, monkeypatch):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/a.py").write_text("from pipeline import b\n")
    (tmp_path / "pipeline/b.py").write_text("def late():\n    from pipeline.a import x\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "FILES", ["pipeline/a.py", "pipeline/b.py"])
    assert modules_read("pipeline/b.py") == {"pipeline/a.py"}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({file: modules_read(file) for file in FILES}).prepare()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("stages/export.py", "stages.report"),
        ("stages/export.py", "flows.compress"),
        ("stages/export.py", "torch.nn"),
        ("stages/export.py", "mlflow"),
        ("pipeline/params/document.py", "pruneonce.sparsity.masks"),
        ("pipeline/params/document.py", "stages.export"),
        ("pipeline/params/document.py", "pruneonce.deployment.packing"),
        ("pipeline/cli.py", "pruneonce.deployment.export"),
        ("pipeline/cli.py", "pruneonce.step_costs"),
        ("pipeline/plan/page.py", "torch"),
        ("pipeline/stage.py", "mlflow"),
        ("flows/compress.py", "stages.export"),
        ("flows/compress.py", "pruneonce"),
        ("pruneonce/sparsity/masks.py", "pipeline.params"),
        ("pruneonce/sparsity/masks.py", "prefect"),
        ("pipeline/tracking/lock.py", "dvc.repo"),
        ("pipeline/cli.py", "pruneonce.command"),
        ("pruneonce/command.py", "pipeline.cli"),
        ("pruneonce/command.py", "importlib"),
        ("pruneonce/deployment/runtime.py", "kernels.build"),
        ("kernels/build.py", "pruneonce.deployment.runtime"),
        ("pruneonce/command.py", "importlib.util"),
    ],
)
def test_a_wrong_arrow_would_be_seen(file, name):
    assert against_the_arrows(file, [name]) == [name]


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        (  # where all of them load none of it, each does
            "pipeline.stage, stages.fetch, stages.report, study.table, study.patterns.table",
            ("torch", "transformers", "prefect", "dvc", "matplotlib"),
        ),
        ("pipeline.tracking.lock", ("torch", "prefect", "dvc", "mlflow")),
        ("pipeline.params.profiles", ("torch", "prefect", "dvc", "mlflow")),
        ("pipeline.cli", ("torch", "onnx", "onnxruntime", "prefect", "dvc", "mlflow")),
        ("pruneonce", ("torch", "onnx", "onnxruntime", "numpy")),
        ("pruneonce.command", ("torch", "onnx", "onnxruntime", "numpy")),
        ("pruneonce.deployment.runtime", ("torch", "transformers", "accelerate", "onnx", "tqdm")),
        ("pruneonce.serving.predictor", ("torch", "transformers", "pyarrow")),
        ("pruneonce.serving.rows", ("torch", "transformers", "pyarrow")),
        ("flows.compress", ("torch", "transformers", "mlflow")),
    ],
)
def test_importing_stays_light(modules, without):
    code = f"import sys, {modules}; print(*{{n.split('.')[0] for n in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {name.split(".")[0] for name in modules.split(", ")} <= loaded
    assert loaded.isdisjoint(without)
