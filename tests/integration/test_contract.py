"""dvc.yaml, the signatures of the stages, params.yaml, git and the README say the same thing."""

import ast
import importlib
import posixpath
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs import modules
from pipeline.params import profiles, sections
from pipeline.params.document import TASK_STAGES, Params, parse
from pipeline.params.reading import parse_yaml, read_yaml
from pipeline.projects import wiring
from pipeline.stage import contract
from tests.integration.tiny import ROOT, flags, stages
from tests.pages import PAGES

STAGES = [
    "fetch",
    "fetch_local",
    "prepare_task",
    "list_tasks",
    "prepare_corpus",
    "prepare_teacher",
    "sparsify",
    "teach_task",
    "finetune",
    "quantize",
    "export",
    "evaluate",
    "report",
]
OTHER = ["import_sparse"]  # in dvc.yaml of a project with a sparse checkpoint, in place of `sparsify`
# Stages of study/dvc.yaml -> the module that they run.
STUDY = {
    "study_sparsify": "stages.sparsify",
    "study_dense": "study.cell",
    "study_late": "study.cell",
    "study_one_shot": "study.cell",
    "study_once": "study.cell",
    "study_once_hard": "study.cell",
    "study_table": "study.table",
}
# The same of study/patterns/dvc.yaml.
PATTERNS = {
    "patterns_sparsify": "stages.sparsify",
    "patterns_fetch": "stages.fetch",
    "patterns_prepare_task": "stages.prepare_task",
    "patterns_teach_task": "stages.teach_task",
    "patterns_cell": "study.patterns.cell",
    "patterns_more_cell": "study.patterns.cell",
    "patterns_export": "study.patterns.export",
    "patterns_more_export": "study.patterns.export",
    "patterns_latency": "study.patterns.latency",
    "patterns_table": "study.patterns.table",
}
DVC = ROOT / "dvc.yaml"
STUDIES = {**STUDY, **PATTERNS}
PARAMS, PART = "params.yaml", "profiles/tasks/${item.task}.yaml"
# Cannot change a byte of an out: errors, a docstring, a command and what it prints, what is planned beforehand, what reads a
# packed file.
NOT_SCIENCE = {
    "pruneonce/__init__.py",
    "pruneonce/columns.py",
    "pruneonce/command.py",
    "pruneonce/commandline.py",
    "pruneonce/errors.py",
    "pruneonce/projects.py",
    "pruneonce/stage.py",
    "pruneonce/terminal.py",
    "pruneonce/deployment/about.py",
    "pruneonce/deployment/external.py",
    "pruneonce/serving/answers.py",
    "pruneonce/serving/predictor.py",
    "pruneonce/serving/rows.py",
    "pruneonce/serving/texts.py",
    "pruneonce/deployment/layers.py",
    "pruneonce/deployment/overview.py",
    "pruneonce/deployment/unpacking.py",
    "pruneonce/step_costs.py",
}
EXECUTION = "pruneonce/deployment/execution.py"
PACKAGES = {path.parent for path in (ROOT / "pruneonce").glob("*/__init__.py")} | {ROOT / "pipeline/reporting"}
# Code that can change an out; all else of ours is plumbing.
OWN = ("pruneonce.", "study.", "pipeline.report", "pipeline.gates", "pipeline.paired")


def wants(module: str) -> dict[str, list[str]]:
    return contract(importlib.import_module(module if "." in module else f"stages.{module}").run)


def study_stages(folder: str = "study") -> dict[str, dict]:
    """dvc.yaml of a study: stage -> its block, with the repository's paths: those in the file begin in the folder."""

    def mended(entry: Any) -> Any:
        if isinstance(entry, dict):
            return {posixpath.normpath(f"{folder}/{path}"): options for path, options in entry.items()}
        return posixpath.normpath(f"{folder}/{entry}")

    found = read_yaml(ROOT / folder / "dvc.yaml")["stages"]
    for block in found.values():
        lists = ("deps", "outs", "metrics", "plots", "params")
        block |= {key: list(map(mended, block[key])) for key in lists if key in block}
    return found


def params_of(block: dict) -> dict[str, list[str]]:
    """The keys that a study's stage lists, by file."""
    return {file: keys for entry in block["params"] for file, keys in entry.items()}


def study_block(stage: str) -> dict:
    return study_stages("study" if stage in STUDY else "study/patterns")[stage]


def listed(block: dict, *keys: str) -> dict[str, bool]:
    """path -> whether DVC caches it, out of dvc.yaml's two ways to write an out."""
    found: dict[str, bool] = {}
    for entry in [e for key in keys for e in block.get(key, [])]:
        name, options = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
        assert name not in found, f"{name} stands twice"
        found[name] = options.get("cache", True)
    return found


def fields(stage: str) -> set[str]:
    """The keys of the stage's own section; list_tasks has none."""
    section = TASK_STAGES.get(stage) or (stage in Params.model_fields and Params.model_fields[stage].annotation)
    return set(getattr(section, "model_fields", ()))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def reached(path: Path) -> set[str]:
    """`path` and every module that it imports, directly or not, and that can change what it writes.

    What runs the sparse kernels reads their sources too.
    """
    found, waiting = set[str](), [path]
    while waiting:
        path = waiting.pop()
        name = path.relative_to(ROOT).as_posix()
        if name in found:
            continue
        found.add(name)
        modules = [ROOT / (m.replace(".", "/") + ".py") for m in imported(path) if m.startswith(OWN)]
        waiting += [m for m in modules if m.is_file()]
    if EXECUTION in found:
        found |= set(tracked("kernels"))
    return found - NOT_SCIENCE


def as_deps(code: set[str]) -> set[str]:
    """The code as dvc.yaml lists it: a package of which every module is read is one entry, the folder."""
    if EXECUTION in code:
        code = code - set(tracked("kernels")) | {"kernels"}
    for package in PACKAGES:
        modules = {path.relative_to(ROOT).as_posix() for path in package.glob("*.py")} - {f"{relative(package)}/__init__.py"}
        if len(modules) > 1 and modules <= code:
            code = code - modules | {relative(package)}
    return code


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tracked(*folders: str) -> list[str]:
    return subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True).stdout.split()


def test_the_stages_are_those_of_the_paper_and_each_has_one_file():
    files = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")
    assert list(stages()) == STAGES
    assert list(study_stages()) == list(STUDY)
    assert list(study_stages("study/patterns")) == list(PATTERNS)
    assert files == sorted([*STAGES, *OTHER])
    assert len(files) == 14


def test_every_section_of_params_belongs_to_a_stage(monkeypatch):
    monkeypatch.chdir(ROOT)
    sections = set(Params.model_fields)
    assert sections == {"pruneonce", "launcher", "machine", "common", "tasks", "study", "patterns", "gates", *STAGES} - {
        "list_tasks"
    }
    for name in profiles.names():
        assert set(parse_yaml(profiles.read(name), name)) == sections - {"pruneonce"}, name


def test_no_title_repeats_a_number_that_may_be_set_otherwise(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in profiles.names():
        assert "%" not in parse_yaml(profiles.read(name), name)["report"]["title"], name


@pytest.mark.parametrize("stage", STAGES)
def test_flags_are_the_parameters_of_run(stage):
    block, want = stages()[stage], wants(stage)
    words = shlex.split(block["cmd"])
    assert words[:3] == ["python", "-m", f"stages.{stage}"]
    assert all(word.startswith("--") and "_" not in word for word in words[3::2]), words[3::2]
    names = [*want["dep"], *want["out"], *want["record"], *want["item"], "metrics"]
    assert sorted(flags(block["cmd"])) == sorted(names)
    assert len(words[3::2]) == len(names)
    foreach = "foreach" in read_yaml(ROOT / "dvc.yaml")["stages"][stage]
    assert want["item"] == (["item"] if foreach else [])
    assert not foreach or flags(block["cmd"])["item"] == "${key}"


@pytest.mark.parametrize("stage", STAGES)
def test_outs_are_what_run_writes(stage):
    block, want = stages()[stage], wants(stage)
    given = flags(block["cmd"])
    written = listed(block, "outs", "metrics", "plots")
    assert sorted(written) == sorted(given[name] for name in [*want["out"], *want["record"], "metrics"])
    assert all(written[given[name]] for name in want["out"])
    # DVC's run cache passes over a stage with an uncached out that is neither a metric nor a plot.
    loose = {path for path, cached in listed(block, "outs").items() if not cached}
    assert loose == ({given["page"], given["table"]} if stage == "report" else set())
    assert not any(listed(block, "metrics", "plots").values())


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_what_run_reads_and_the_code_that_can_change_it(stage):
    block, want = stages()[stage], wants(stage)
    given = flags(block["cmd"])
    code = reached(ROOT / f"stages/{stage}.py")
    assert f"stages/{stage}.py" in code
    assert len(code) >= 2 or stage == "list_tasks", "a stage without science"
    chosen = {"${item." + name + "}" for name in want["given"]}
    assert sorted(block["deps"]) == sorted({given[name] for name in want["dep"]} | chosen | as_deps(code))


def test_a_change_reruns_what_it_can_change_and_no_more():
    """An edit of the training loop exports nothing again, an edit of the exporter measures nothing again."""
    code = {stage: reached(ROOT / f"stages/{stage}.py") for stage in STAGES}
    assert "pruneonce/training/loop.py" in code["finetune"]
    assert not any(path.startswith("pruneonce/training/") for stage in ("export", "evaluate") for path in code[stage])
    assert "pruneonce/deployment/export.py" in code["export"]
    assert "pruneonce/deployment/export.py" not in code["evaluate"]
    assert [stage for stage in STAGES if "kernels" in stages()[stage]["deps"]] == ["evaluate"]
    assert not any(path.startswith("pruneonce/deployment/") for stage in STAGES[:-3] for path in code[stage])


def test_a_package_of_the_library_does_nothing_by_itself():
    """Its __init__.py is no dep of a stage that reads some of its modules only, so it holds a docstring and no code."""
    assert len(PACKAGES) >= 8
    for package in PACKAGES:
        body = ast.parse((package / "__init__.py").read_text()).body
        assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body), package
        assert ast.get_docstring(ast.parse((package / "__init__.py").read_text())), package


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_the_sections_that_run_takes(stage):
    block, sections = stages()[stage], wants(stage)["section"]
    launched = "\n    launch(run)\n" in (ROOT / f"stages/{stage}.py").read_text()  # how many processes can change bytes
    assert launched == ("micro_batches" in fields(stage))
    if stage in ("fetch", "fetch_local"):
        expected = [f"{stage}.${{key}}"]
        assert sections == [stage]
    else:
        expected = sections + [f"tasks.${{key}}.{name}" for name in sections if name in TASK_STAGES]
        assert stage in sections or (stage, sections) == ("list_tasks", ["tasks"])
    assert sorted(block["params"]) == sorted(expected + ["launcher"] * launched)


def test_no_shell_reads_what_a_person_may_write_freely():
    """What dvc.yaml puts into a command is the name of a task, a source, a variant or a criterion, or a number."""
    named = {"key", "common.model", "item.prepare_task.source", "item.task", "item.variant", "item.sparsity"}
    named |= {"item.criterion", "item.pattern", "patterns.tasks[0]"}
    blocks = [*stages().values(), *study_stages().values(), *study_stages("study/patterns").values()]
    assert {name for block in blocks for name in re.findall(r"\$\{(.*?)\}", block["cmd"])} == named
    for name in ("Common.model", "PrepareTask.source"):
        section, field = name.split(".")
        (pattern,) = [m.pattern for m in vars(sections)[section].model_fields[field].metadata if hasattr(m, "pattern")]
        assert pattern == r"^[A-Za-z0-9][A-Za-z0-9_-]*$", name


def test_the_four_task_sections_are_read_by_their_own_stage_only():
    read = {stage: set(wants(stage)["section"]) & set(TASK_STAGES) for stage in STAGES}
    own = {name: {name} for name in TASK_STAGES}
    assert {stage: names for stage, names in read.items() if names} == {**own, "export": {"prepare_task"}}
    assert len(TASK_STAGES) == 4


def test_all_science_is_a_dep_of_some_stage():
    modules = {relative(path) for path in (ROOT / "pruneonce").rglob("*.py")} - NOT_SCIENCE
    modules -= {relative(package) + "/__init__.py" for package in PACKAGES}
    modules -= {relative(path) for folder in ("commands", "doctor") for path in (ROOT / "pruneonce" / folder).glob("*.py")}
    code = [reached(ROOT / f"stages/{stage}.py") for stage in [*STAGES, *OTHER]]
    code += [reached(ROOT / (module.replace(".", "/") + ".py")) for module in STUDIES.values()]
    assert {path for paths in code for path in paths if path.startswith("pruneonce/")} == modules
    assert len(modules) >= 30


def test_no_two_stages_write_the_same_path():
    # fetch and fetch_local share data/raw/<name>: params refuses a name that stands in both.
    paths = Counter(path for block in stages().values() for path in listed(block, "outs", "metrics", "plots"))
    assert [path for path, count in paths.items() if count > 1] == ["data/raw/${key}"]
    assert len(paths) >= 30


def test_git_ignores_what_dvc_caches_and_keeps_the_rest():
    outs = {
        path: cached for block in stages().values() for path, cached in listed(block, "outs", "metrics", "plots").items()
    }
    for path, cached in outs.items():
        example = path.replace("${key}", "some-task")
        assert "$" not in example
        done = subprocess.run(["git", "check-ignore", "--no-index", "--quiet", example], cwd=ROOT)
        assert done.returncode == (0 if cached else 1), f"{path} is {'not ' if cached else ''}ignored"
    assert (sum(outs.values()), len(outs) - sum(outs.values())) == (22, 15)


@pytest.mark.parametrize("imports", [False, True])
def test_dvc_yaml_of_a_project_has_the_same_stages(imports):
    """Commands by `pruneonce.stage`, the same paths and parameters; the version in place of the code."""
    made, ours = (parse_yaml(text, "dvc.yaml")["stages"] for text in (wiring.text(imports=imports), DVC.read_text()))
    own = made.pop("import_sparse") if imports else None
    assert list(made) == [stage for stage in STAGES if not (imports and stage == "sparsify")]
    for stage, entry in made.items():
        block, mine = entry.get("do", entry), ours[stage].get("do", ours[stage])
        assert block["cmd"] == mine["cmd"].replace("python -m stages.", "python -P -m pruneonce.stage ")
        assert block["params"] == ["pruneonce", *mine["params"]]
        assert block.get("deps", []) == [dep for dep in mine["deps"] if dep.startswith(("data/", "${"))]
        assert {k: v for k, v in block.items() if k not in ("cmd", "deps", "params")} == {
            k: v for k, v in mine.items() if k not in ("cmd", "deps", "params")
        }
        assert entry.get("foreach") == ours[stage].get("foreach")
    if own:
        want, given = wants("import_sparse"), flags(own["cmd"].replace("-P -m pruneonce.stage ", "-m stages."))
        assert sorted(given) == sorted([*want["dep"], *want["out"], "metrics"])
        assert own["deps"] == [given[name] for name in want["dep"]]
        assert listed(own, "outs") == listed(ours["sparsify"], "outs") == {given["model_folder"]: True}
        assert own["params"] == ["pruneonce", *want["section"]]


def test_every_plot_of_dvc_yaml_reads_an_out():
    outs = {path for block in stages().values() for path in listed(block, "outs", "metrics", "plots")}
    plots = [(name, body) for entry in read_yaml(ROOT / "dvc.yaml")["plots"] for name, body in entry.items()]
    read = [path for name, body in plots for path in (body["y"] if isinstance(body.get("y"), dict) else [name])]
    assert len(read) == 2
    assert set(read) <= outs


def test_no_curve_is_plotted_twice():
    curves = Counter[tuple[str, str]]()
    for block in stages().values():
        for entry in block.get("plots", []):
            curves.update((path, options["y"]) for path, options in entry.items())
    for entry in read_yaml(ROOT / "dvc.yaml")["plots"]:
        for path, found in next(iter(entry.values()))["y"].items():
            curves.update((path, y) for y in ([found] if isinstance(found, str) else found))
    assert len(curves) == 9
    assert set(curves.values()) == {1}


@pytest.mark.parametrize("stage", STUDIES)
def test_a_study_runs_stages_as_the_pipeline_does(stage):
    """Flags, outs, deps and params of its dvc.yaml say what `run` says; its paths are the repository's, too."""
    block, want = study_block(stage), wants(STUDIES[stage])
    up = ".." if stage in STUDY else "../.."
    assert shlex.split(block["cmd"])[:6] == ["cd", up, "&&", "python", "-m", STUDIES[stage]]
    given = flags(block["cmd"])
    names = {*want["dep"], *want["out"], *want["record"], *want["item"], "metrics"}
    assert set(given) - names <= {"set", "part"}
    assert ("set" in given) == (STUDIES[stage] == "stages.sparsify")
    written = listed(block, "outs", "metrics", "plots")
    assert sorted(written) == sorted(given[name] for name in [*want["out"], *want["record"], "metrics"])
    # What git keeps is the table alone; every number of a cell is in DVC's cache.
    assert set(written.values()) == {not stage.endswith("_table")}
    code = reached(ROOT / (STUDIES[stage].replace(".", "/") + ".py"))
    # File by file: DVC would count the bytecode in a folder outside of the study's own project, whatever .dvcignore says.
    assert sorted(block["deps"]) == sorted({given[name] for name in want["dep"]} | code)


@pytest.mark.parametrize("stage", [name for name, module in STUDIES.items() if module != "study.cell"])
def test_the_params_of_a_study_stage_are_those_it_reads(stage):
    """A cell and an export read single keys of some sections, so that no other key is a reason to run them again."""
    module, block = STUDIES[stage], study_block(stage)
    source = (ROOT / (module.replace(".", "/") + ".py")).read_text()
    sections = set(wants(module)["section"])
    parts = {
        "study.patterns.cell": {"sparsify": {"scope"}, "patterns": {"seeds"}},
        "study.patterns.export": {"evaluate": {"threads", "batch_size", "resamples"}},
    }.get(module, {})
    for section, keys in parts.items():
        assert set(re.findall(rf"\b{section}\.(\w+)", source.partition("\ndef run(")[2])) == keys
    single = {f"{section}.{key}" for section, keys in parts.items() for key in keys}
    of_task = {f"tasks.${{item.task}}.{name}" for name in sections & set(TASK_STAGES)}
    launched = {"launcher"} if "\n    launch(run)\n" in source else set()
    expected = {PARAMS: (sections - set(parts)) | single | of_task | launched}
    given = flags(block["cmd"])
    if stage == "patterns_fetch":
        expected = {PART: {"fetch.${item.task}"}}
    elif "part" in given:
        expected = {PARAMS: expected[PARAMS] - of_task, PART: of_task}
    assert given.get("part", PART) == PART
    assert {file: set(keys) for file, keys in params_of(block).items()} == expected
    assert ("part" in given) == ("patterns.more_tasks" in str(block.get("matrix")) and module != "study.patterns.export")


@pytest.mark.parametrize("stage", [name for name, module in STUDY.items() if module == "study.cell"])
def test_the_params_of_a_cell_are_those_it_reads(stage):
    """A cell reads its own part of `study`, so that another variant, task or sparsity is no reason to run it again."""
    sections = set(wants("study.cell")["section"])
    source = (ROOT / "study/cell.py").read_text()
    assert set(re.findall(r"\bstudy\.(\w+)(\[?)", source)) == {
        *(("recipe", ""), ("longer", "")),
        *(("variants", "["), ("steps", "[")),
    }
    variant = flags(study_block(stage)["cmd"])["variant"]
    parts = {"study.longer", "study.recipe", "study.steps.${item.task}", f"study.variants.{variant}"}
    of_task = {f"tasks.${{item.task}}.{name}" for name in sections & set(TASK_STAGES)}
    # Of student pruning, which the cells do not do, they read which matrices count, where zeros may lie, and how much a
    # criterion reads.
    pruned = set(re.findall(r"\bsparsify\.(\w+)", source))
    assert pruned == {"batch_size", "calibration_batches", "pattern", "prunable", "scope"}
    corpus = {f"prepare_corpus.{key}" for key in re.findall(r"\bprepare_corpus\.(\w+)", source)}
    expected = (
        (sections - {"study", "sparsify", "prepare_corpus"})
        | corpus
        | {f"sparsify.{key}" for key in pruned}
        | of_task
        | parts
    )
    assert {file: set(keys) for file, keys in params_of(study_block(stage)).items()} == {PARAMS: expected}


def test_the_study_runs_every_variant_and_writes_no_path_twice(monkeypatch):
    monkeypatch.chdir(ROOT)
    cells = [stage for stage, module in STUDY.items() if module == "study.cell"]
    variants = {variant for stage in cells for variant in study_stages()[stage]["matrix"]["variant"]}
    written = [path for block in study_stages().values() for path in listed(block, "outs", "metrics", "plots")]
    for profile in profiles.names():
        asked = parse(parse_yaml(profiles.read(profile), profile), profile).study
        assert set(asked.variants) == variants, profile
        for stage in cells:
            matrix = study_stages()[stage]["matrix"]
            begins_sparse = "sparsify" in flags(study_block(stage)["cmd"])["start_folder"]
            for variant in matrix["variant"]:
                assert (asked.variants[variant].pruning == "once") == begins_sparse
                assert (variant in asked.baselines.variants) == ("baselines" in str(matrix["sparsity"]))
    assert len({path for stage in cells for path in listed(study_stages()[stage], "outs")}) == 1, "which the table reads"
    assert len(written) == len(set(written)) + len(cells) - 1


def test_what_a_study_writes_is_its_own_and_git_ignores_what_dvc_caches():
    """The blocks of the cells of patterns differ in their tasks, so they may write to paths that read alike."""
    mine = {path for block in stages().values() for path in listed(block, "outs", "metrics", "plots")}
    blocks = [*study_stages().values(), *study_stages("study/patterns").values()]
    written = {path for block in blocks for path in listed(block, "outs", "metrics", "plots")}
    assert mine.isdisjoint(written)
    assert len(written) >= 25
    for path in written:
        example = re.sub(r"\$\{[^}]*\}", "some", path)
        done = subprocess.run(["git", "check-ignore", "--no-index", "--quiet", example], cwd=ROOT)
        cached = path.startswith(("study/data/", "study/patterns/data/"))
        assert done.returncode == (0 if cached else 1), f"{path} is {'not ' * cached}ignored"


def test_every_module_has_a_line_and_every_room_is_in_the_layout():
    """The line is the summary of its docstring; docs/contributing.md lists them as the code has them."""
    files = [file for file in tracked(*modules.FOLDERS) if file.endswith(".py")]
    assert len(files) >= 60
    assert [file for file in files if not modules.summary(ROOT / file)] == []
    layout = PAGES["README.md"].partition("## Layout\n")[2].partition("\n## ")[0]
    drawn = set(re.findall(r"\b[\w-]+(?=/)", layout))
    rooms = {Path(file).parent.name for file in files} | {"docs", "profiles", "tests", "benchmarks", "data", "kernels"}
    assert len(rooms) >= 15
    assert drawn == rooms
