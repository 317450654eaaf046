"""dvc.yaml, the signatures of the stages, params.yaml, git and the README say the same thing."""

import ast
import importlib
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import params, profiles
from pipeline.stage import contract
from tests.integration.tiny import ROOT, flags, stages

STAGES = [
    "fetch",
    "fetch_local",
    "prepare_task",
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
# Stages of study/dvc.yaml -> the stage file that they run; what they are called by.
STUDY = {
    "study_sparsify": "sparsify",
    "study_dense": "study_cell",
    "study_late": "study_cell",
    "study_once": "study_cell",
    "study_table": "study_table",
}
# Cannot change a byte of an out: texts of errors, a docstring, what is planned before anything runs, how files are unpacked.
NOT_SCIENCE = {"pruneonce/errors.py", "pruneonce/__init__.py", "pruneonce/planning.py", "pruneonce/unpacking.py"}


def wants(stage: str) -> dict[str, list[str]]:
    return contract(importlib.import_module(f"stages.{stage}").run)


def study_stages() -> dict[str, dict]:
    """study/dvc.yaml: stage -> its block."""
    return params.read_yaml(ROOT / "study/dvc.yaml")["stages"]


def listed(block: dict, *keys: str) -> dict[str, bool]:
    """path -> whether DVC caches it, out of dvc.yaml's two ways to write an out."""
    found: dict[str, bool] = {}
    for entry in [e for key in keys for e in block.get(key, [])]:
        name, options = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
        assert name not in found, f"{name} stands twice"
        found[name] = options.get("cache", True)
    return found


def fields(stage: str) -> set[str]:
    """The keys of the stage's own section."""
    section = params.TASK_STAGES.get(stage) or params.Params.model_fields[stage].annotation
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
    """`path` and every module of pruneonce that it imports, directly or not."""
    found, waiting = set[str](), [path]
    while waiting:
        path = waiting.pop()
        name = path.relative_to(ROOT).as_posix()
        if name in found:
            continue
        found.add(name)
        modules = [ROOT / (m.replace(".", "/") + ".py") for m in imported(path) if m.startswith("pruneonce.")]
        waiting += [m for m in modules if m.is_file()]
    return found - NOT_SCIENCE


def tracked(*folders: str) -> list[str]:
    return subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True).stdout.split()


def test_the_stages_are_those_of_the_paper_and_each_has_one_file():
    files = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")
    assert list(stages()) == STAGES
    assert list(study_stages()) == list(STUDY)
    assert files == sorted({*STAGES, *STUDY.values()})
    assert len(files) == 14


def test_every_section_of_params_belongs_to_a_stage(monkeypatch):
    monkeypatch.chdir(ROOT)
    sections = set(params.Params.model_fields)
    assert sections == {"launcher", "common", "tasks", "study", *STAGES}
    for name in profiles.names():
        assert set(params.parse_yaml(profiles.read(name), name)) == sections, name


@pytest.mark.parametrize("stage", STAGES)
def test_flags_are_the_parameters_of_run(stage):
    block, want = stages()[stage], wants(stage)
    words = shlex.split(block["cmd"])
    launcher = "${launcher}" if "micro_batches" in fields(stage) else "python"
    assert words[:3] == [launcher, "-m", f"stages.{stage}"]
    assert all(word.startswith("--") and "_" not in word for word in words[3::2]), words[3::2]
    names = [*want["dep"], *want["out"], *want["record"], *want["item"], "metrics"]
    assert sorted(flags(block["cmd"])) == sorted(names)
    assert len(words[3::2]) == len(names)
    foreach = "foreach" in params.read_yaml(ROOT / "dvc.yaml")["stages"][stage]
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
    assert len(code) >= 2, "a stage without science"
    assert sorted(block["deps"]) == sorted({given[name] for name in want["dep"]} | code)


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_the_sections_that_run_takes(stage):
    block, sections = stages()[stage], wants(stage)["section"]
    if stage in ("fetch", "fetch_local"):
        expected = [f"{stage}.${{key}}"]
        assert sections == [stage]
    else:
        expected = sections + [f"tasks.${{key}}.{name}" for name in sections if name in params.TASK_STAGES]
        assert stage in sections
    assert sorted(block["params"]) == sorted(expected)


def test_the_four_task_sections_are_read_by_their_own_stage_only():
    read = {stage: set(wants(stage)["section"]) & set(params.TASK_STAGES) for stage in STAGES}
    assert {stage: names for stage, names in read.items() if names} == {name: {name} for name in params.TASK_STAGES}
    assert len(params.TASK_STAGES) == 4


def test_all_science_is_a_dep_of_some_stage():
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pruneonce").glob("*.py")} - NOT_SCIENCE
    blocks = [*stages().values(), *study_stages().values()]
    read = {dep for block in blocks for dep in block["deps"] if dep.startswith("pruneonce/")}
    assert read == modules
    assert len(modules) >= 15


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
    assert (sum(outs.values()), len(outs) - sum(outs.values())) == (17, 15)


def test_every_plot_of_dvc_yaml_reads_an_out():
    outs = {path for block in stages().values() for path in listed(block, "outs", "metrics", "plots")}
    plots = [(name, body) for entry in params.read_yaml(ROOT / "dvc.yaml")["plots"] for name, body in entry.items()]
    read = [path for name, body in plots for path in (body["y"] if isinstance(body.get("y"), dict) else [name])]
    assert len(read) == 3
    assert set(read) <= outs


@pytest.mark.parametrize("stage", STUDY)
def test_the_study_runs_stages_as_the_pipeline_does(stage):
    """Flags, outs, deps and params of study/dvc.yaml say what `run` says; its paths are the repository's, too."""
    block, want = study_stages()[stage], wants(STUDY[stage])
    assert block["wdir"] == ".."
    launcher = "${launcher}" if STUDY[stage] == "sparsify" else "python"
    assert shlex.split(block["cmd"])[:3] == [launcher, "-m", f"stages.{STUDY[stage]}"]
    given = flags(block["cmd"])
    names = {*want["dep"], *want["out"], *want["record"], *want["item"], "metrics"}
    assert set(given) == (names | {"set"} if stage == "study_sparsify" else names)
    written = listed(block, "outs", "metrics", "plots")
    assert sorted(written) == sorted(given[name] for name in [*want["out"], *want["record"], "metrics"])
    # What git keeps is the table alone; every number of a cell is in DVC's cache.
    assert set(written.values()) == {stage != "study_table"}
    code = reached(ROOT / f"stages/{STUDY[stage]}.py")
    assert sorted(block["deps"]) == sorted({given[name] for name in want["dep"]} | code)


@pytest.mark.parametrize("stage", STUDY)
def test_the_params_of_a_study_stage_are_those_it_reads(stage):
    sections = set(wants(STUDY[stage])["section"])
    listed_params = set(study_stages()[stage]["params"])
    if STUDY[stage] != "study_cell":
        assert listed_params == sections
        return
    # A cell reads its own part of `study`, so that another variant, task or sparsity is no reason to run it again.
    source = (ROOT / "stages/study_cell.py").read_text()
    assert set(re.findall(r"\bstudy\.(\w+)(\[?)", source)) == {("recipe", ""), ("variants", "["), ("steps", "[")}
    variant = flags(study_stages()[stage]["cmd"])["variant"]
    parts = {"study.recipe", "study.steps.${item.task}", f"study.variants.{variant}"}
    of_task = {f"tasks.${{item.task}}.{name}" for name in sections & set(params.TASK_STAGES)}
    # Of student pruning, which the cells do not do, they read which matrices count and where zeros may lie.
    pruned = set(re.findall(r"\bsparsify\.(\w+)", source))
    assert pruned == {"pattern", "prunable", "scope"}
    assert listed_params == (sections - {"study", "sparsify"}) | {f"sparsify.{key}" for key in pruned} | of_task | parts


def test_the_study_runs_every_variant_and_writes_no_path_twice(monkeypatch):
    monkeypatch.chdir(ROOT)
    variants = {"dense"}
    for stage in ("study_late", "study_once"):
        variants |= set(study_stages()[stage]["matrix"]["variant"])
    written = [path for block in study_stages().values() for path in listed(block, "outs", "metrics", "plots")]
    for profile in profiles.names():
        rows = params.parse(params.parse_yaml(profiles.read(profile), profile), profile).study.variants
        assert set(rows) == variants, profile
        assert {name for name, row in rows.items() if row.pruning == "once"} == set(
            study_stages()["study_once"]["matrix"]["variant"]
        )
    late, once = (next(p for p in listed(study_stages()[s], "outs")) for s in ("study_late", "study_once"))
    assert late == once, "the table finds a cell by task, variant and sparsity"
    assert len(written) == len(set(written)) + 1
    mine = {path for block in stages().values() for path in listed(block, "outs", "metrics", "plots")}
    assert mine.isdisjoint(written)
    for path in written:
        example = re.sub(r"\$\{[^}]*\}", "some", path)
        done = subprocess.run(["git", "check-ignore", "--no-index", "--quiet", example], cwd=ROOT)
        assert done.returncode == (0 if path.startswith("data/") else 1), (
            f"{path} is {'not ' * path.startswith('data/')}ignored"
        )


def tree() -> str:
    """The indented block of the README that draws the tree."""
    blocks = re.findall(r"(?:^    .*\n)+", (ROOT / "README.md").read_text(), re.MULTILINE)
    folders = ("flows/", "stages/", "pipeline/", "pruneonce/")
    (found,) = [block for block in blocks if all(re.search(rf"(?m)^ +{folder}", block) for folder in folders)]
    return found


def test_the_readme_has_a_line_for_every_file():
    drawn = Counter(re.findall(r"[\w-]+\.py\b", tree()))
    files = [f for f in tracked("flows", "stages", "pipeline", "pruneonce") if not f.endswith("/__init__.py")]
    need = Counter(Path(file).name for file in files)
    assert len(files) >= 35
    assert {name: count for name, count in need.items() if drawn[name] < count} == {}


def test_the_readme_draws_no_file_that_is_not_there():
    folders = ("flows", "stages", "pipeline", "pruneonce", "tests", "benchmarks")
    there = {path.name for folder in folders for path in (ROOT / folder).rglob("*.py")}
    drawn = set(re.findall(r"[\w-]+\.py\b", tree()))
    assert len(drawn) >= 35
    assert drawn <= there
