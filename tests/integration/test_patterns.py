"""The study of patterns on the tiny profile: it is the pipeline's own recipe, and its tables say what was measured."""

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import onnx
import pytest
from ruamel.yaml import YAML
from transformers import AutoModelForSequenceClassification

from flows import order
from pipeline.history import Log
from pipeline.params.document import load
from pruneonce.deployment import provenance
from pruneonce.errors import ConfigError, PatternBroken
from pruneonce.models import checkpoint
from pruneonce.sparsity import masks, patterns
from study.patterns import latency
from tests.conftest import PRUNABLE
from tests.integration import study, tiny

FOLDER = tiny.ROOT / "study/patterns"
AGAIN = "again"  # the same texts as `topic`, as a task of the study alone
PART = {
    "fetch": {AGAIN: {"package": "nothing==1", "sha256": "0" * 64, "members": {"train.tsv": "a", "test.tsv": "b"}}},
    "tasks": {
        AGAIN: {
            "prepare_task": {"source": AGAIN, "text": "text", "label": "label"},
            "teach_task": {"epochs": 2},
            "finetune": {"epochs": 1},
            "quantize": {"epochs": 0.5},
        }
    },
}
CELLS = [f"{task}-{pattern}-0.85" for task in (tiny.TASK, AGAIN) for pattern in ("unstructured", "1x4")]


class Stopped(Exception):
    """What stands for a kill: it leaves a stage from within a step."""


def document() -> dict[str, Any]:
    asked = tiny.document()
    asked["patterns"] |= {"more_tasks": [AGAIN], "sparsities": [0.85]}
    return asked


def commands() -> dict[str, study.Command]:
    return {command.name: command for command in study.commands(document(), FOLDER)}


@pytest.fixture(scope="module")
def done(first, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A folder in which the whole study ran, and what its stages returned; only the source was not fetched."""
    folder = tmp_path_factory.mktemp("patterns")
    shutil.copytree(first.folder / "data", folder / "data")
    (folder / "profiles/tasks").mkdir(parents=True)
    with (folder / f"profiles/tasks/{AGAIN}.yaml").open("w") as file:
        YAML().dump(PART, file)
    shutil.copytree(folder / "data/raw/topic", folder / f"study/patterns/data/raw/{AGAIN}")
    ran = {
        name: study.run(command, folder, document())
        for name, command in commands().items()
        if not name.startswith("patterns_fetch")
    }
    return folder, ran


def test_every_command_of_the_study_ran(done):
    both = [f"{pattern}-0.85" for pattern in ("unstructured", "1x4")]
    assert list(done[1]) == [
        *(f"patterns_sparsify@{key}" for key in both),
        *(f"patterns_{stage}@{AGAIN}" for stage in ("prepare_task", "teach_task")),
        *(f"patterns_cell@topic-{key}" for key in both),
        *(f"patterns_more_cell@{AGAIN}-{key}" for key in both),
        *(f"patterns_export@topic-{key}" for key in both),
        *(f"patterns_more_export@{AGAIN}-{key}" for key in both),
        "patterns_latency",
        "patterns_table",
    ]


def test_the_first_seed_at_the_pipeline_s_own_pattern_has_the_pipeline_s_bytes(done, first):
    """So the recipe is the pipeline's, to the last bit of the file that ships, but for what that says of itself."""
    folder = done[0] / "study/patterns/data"
    pairs = {
        "sparsify/unstructured-0.85/model": "sparsify/model",
        "quantize/topic-unstructured-0.85": "quantize/topic",
    }
    for mine, theirs in pairs.items():
        names = sorted(path.name for path in first[theirs].iterdir())
        assert sorted(path.name for path in (folder / mine).iterdir()) == names
        assert [n for n in names if (folder / mine / n).read_bytes() != (first[theirs] / n).read_bytes()] == []
    shipped = onnx.load(first["export/topic/int8.onnx"])
    for entry in [e for e in shipped.metadata_props if e.key in (provenance.ABOUT, provenance.TOKENIZER)]:
        shipped.metadata_props.remove(entry)
    assert (folder / "int8/topic-unstructured-0.85.onnx").read_bytes() == shipped.SerializeToString()
    measured = first.metrics["evaluate@topic"]["int8"]
    exported = done[1]["patterns_export@topic-unstructured-0.85"]
    assert exported["score"] == measured["score"]


@pytest.mark.parametrize("name", CELLS)
def test_the_models_of_a_cell_have_its_pattern_and_its_sparsity(done, name):
    pattern = name.split("-")[1]
    (scratch,) = (done[0] / "scratch").glob(f"patterns_*cell@{name}")
    folders = [*(path for path in scratch.iterdir() if path.is_dir()), done[0] / "study/patterns/data/quantize" / name]
    assert len(folders) == 5  # sparse and quantized, of two seeds; and what the cell writes
    for folder in folders:
        model = checkpoint.load_task_model(AutoModelForSequenceClassification, folder, attention="eager")
        zeros = masks.zeros(model, PRUNABLE)
        masks.check_sparsity(zeros, 0.85, patterns.placement(pattern, "uniform", masks.prunable(model, PRUNABLE)).select)
        whole = [bool((z.view(len(z), -1, 4).any(-1) == z.view(len(z), -1, 4).all(-1)).all()) for z in zeros.values()]
        assert set(whole) == {pattern == "1x4"}


def test_a_task_of_the_study_alone_has_its_own_recipe(done):
    steps = {name: done[1][name]["steps"] for name in done[1] if "cell@" in name and "1x4" in name}
    assert steps["patterns_cell@topic-1x4-0.85"] == {"finetune": 90, "quantize": 36}
    assert steps[f"patterns_more_cell@{AGAIN}-1x4-0.85"] == {"finetune": 18, "quantize": 9}


def test_the_table_says_what_was_measured(done):
    folder, ran = done
    rows = {row["variant"]: row for row in json.loads((folder / "study/patterns/table.json").read_text())["rows"]}
    assert list(rows) == ["unstructured", "1x4"]
    for pattern, row in rows.items():
        cell, export = ran[f"patterns_more_cell@{AGAIN}-{pattern}-0.85"], f"patterns_more_export@{AGAIN}-{pattern}-0.85"
        assert row["scores"][AGAIN] == list(cell["int8"].values())
        assert row["float_scores"][AGAIN] == list(cell["sparse"].values())
        assert (row["onnx_scores"][AGAIN], row["packed_bytes"][AGAIN]) == (ran[export]["score"], ran[export]["packed_bytes"])
        assert list(row["latencies_ms"]) == list(latency.EXECUTIONS)
        for execution, by_task in row["latencies_ms"].items():
            assert by_task[AGAIN] == ran["patterns_latency"][execution][f"{AGAIN}-{pattern}-0.85"]["median_ms"] > 0
        assert ran["patterns_table"][AGAIN][f"{pattern}-0.85"] == fmean(cell["int8"].values())
    page = (folder / "study/patterns/table.md").read_text()
    assert page.count("\n| ") == 1 + len(rows)
    assert "- unstructured >= 1x4: " in page
    with (folder / "study/patterns/latencies.csv").open() as file:
        points = list(csv.DictReader(file))
    assert len(points) == len(CELLS) * len(latency.EXECUTIONS)
    picture = (folder / "study/patterns/latencies.svg").read_text()
    assert all(f"1x4, {execution}" in picture for execution in latency.EXECUTIONS)


def test_a_cell_that_is_stopped_goes_on_with_the_model_that_was_in_training(done, tmp_path):
    folder, ran = done
    name = f"patterns_more_cell@{AGAIN}-1x4-0.85"
    command = commands()[name]
    for path in ("data", "profiles", "study/patterns/data/sparsify", "study/patterns/data/tasks"):
        shutil.copytree(folder / path, tmp_path / path)
    shutil.copytree(folder / "study/patterns/data/teach_task", tmp_path / "study/patterns/data/teach_task")
    seen: Counter[str] = Counter()

    def track(step: int, metrics: Any) -> None:
        seen[next(iter(metrics)).partition("/")[0]] += 1
        if len(seen) == 4 and step == 5:
            raise Stopped

    with pytest.raises(Stopped):
        study.run(command, tmp_path, document(), Log(tmp_path / "scratch" / name, track))
    assert not (tmp_path / command.flags["model_folder"]).exists()
    went_on: Counter[str] = Counter()
    log = Log(tmp_path / "scratch" / name, lambda step, metrics: went_on.update([next(iter(metrics)).partition("/")[0]]))
    assert study.run(command, tmp_path, document(), log) == ran[name]
    assert list(seen) == ["finetune-1", "finetune-2", "int8-1", "int8-2"]
    assert went_on == {"int8-2": 9}
    written = command.flags["model_folder"]
    for path in (folder / written).iterdir():
        assert (tmp_path / written / path.name).read_bytes() == path.read_bytes()


def test_a_sparse_model_of_another_pattern_is_an_error(done, tmp_path):
    """Nothing is pruned in a cell: what it begins with must have the pattern."""
    command = commands()[f"patterns_more_cell@{AGAIN}-1x4-0.85"]
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("scratch"))
    other = command.flags | {"sparse_folder": command.flags["sparse_folder"].replace("1x4", "unstructured")}
    with pytest.raises(PatternBroken):
        study.run(study.Command("wrong", command.module, other), tmp_path, document())


def test_the_study_brings_what_it_stands_on(project, monkeypatch):
    monkeypatch.chdir(project.folder)
    project.edit(lambda asked: asked["patterns"].update(sparsities=[0.8, 0.9]))
    whole = order.in_order(order.PATTERNS)
    mine = [name.removeprefix("study/patterns/dvc.yaml:") for name in whole if name.startswith("study/")]
    asked = tiny.document()
    asked["patterns"]["sparsities"] = [0.8, 0.9]
    assert sorted(mine) == sorted(command.name for command in study.commands(asked, FOLDER))
    assert len(mine) == 4 + 4 + 4 + 2
    assert mine[-2:] == ["patterns_latency", "patterns_table"]
    below = {name.partition("@")[0] for name in whole if not name.startswith("study/")}
    assert below == {"fetch_local", "prepare_task", "list_tasks", "prepare_corpus", "prepare_teacher", "teach_task"}


def test_a_part_lies_over_params_yaml_for_one_run(monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    laid = load(parts=[Path("profiles/tasks/newsgroups.yaml")], changes=["common.seed=7"])
    assert laid.section("prepare_task", "newsgroups").source == "newsgroups"
    assert laid.section("finetune", "newsgroups").epochs == 1.0
    assert laid.section("finetune", "newsgroups").learning_rate == laid.section("finetune", "r8").learning_rate
    assert laid.common.seed == 7
    assert "newsgroups" not in load().tasks


def test_a_part_without_sections_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    (tmp_path / "part.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match=r"expected sections in .*part\.yaml, found \['a'\]"):
        load(parts=[tmp_path / "part.yaml"])
