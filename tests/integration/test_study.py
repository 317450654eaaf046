"""The study on the tiny profile: the same bytes twice, though a cell is stopped the second time; what a cell promises."""

import csv
import json
import math
import shutil
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from flows import order
from pipeline import stage
from pipeline.history import Log
from pipeline.params.document import load
from pipeline.params.reading import read_yaml
from pipeline.tracking import lock, store
from pruneonce.models import checkpoint
from pruneonce.sparsity import masks
from pruneonce.training.task import Task
from study import table, trials
from tests.conftest import PRUNABLE, cpu_engine
from tests.integration import study, tiny

BY = "second_order"
CELLS = ["dense-none-0", *(f"{variant}-{BY}-0.9" for variant in ("gradual", "one_shot", "once", "once_hard"))]
STOPPED = f"study_once@topic-once-{BY}-0.9"
STUDY = study.document()["study"]
RATES = STUDY["recipe"]["learning_rates"]
STEPS, LONGER = STUDY["steps"]["topic"], STUDY["longer"]["steps"]


class Stopped(Exception):
    """What stands for a kill: it leaves a stage from within a step."""


def outs(folder: Path) -> dict[str, bytes]:
    files = [*(folder / "study/data").rglob("*"), *(folder / "study").rglob("*")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.is_file()}


@pytest.fixture(scope="module")
def done(first, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A folder in which the whole study ran, and what its stages returned."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copytree(first.folder / "data", folder / "data")
    return folder, study.run_all(folder)


@pytest.fixture(scope="module")
def cells(done) -> dict[str, dict[str, Any]]:
    return {
        path.stem.removeprefix("topic-"): json.loads(path.read_text()) for path in (done[0] / "study/data/cells").iterdir()
    }


def test_every_command_of_the_study_ran(done):
    names = ["study_dense", "study_late", "study_one_shot", "study_once", "study_once_hard"]
    cells = [f"{name}@topic-{cell}" for name, cell in zip(names, CELLS, strict=True)]
    assert list(done[1]) == [f"study_sparsify@{BY}-0.9", *cells, "study_table"]


def test_every_variant_took_the_same_steps_and_the_rate_is_the_best_on_validation(cells):
    assert sorted(cells) == sorted(CELLS)
    for cell in cells.values():
        assert cell["steps"] == STEPS
        rate, tried = cell["learning_rate"], {float(name): score for name, score in cell["validation"].items()}
        assert rate == trials.best_rate(tried)
        assert set(tried) >= set(trials.around(RATES, rate))
        assert cell["bracketed"] == (rate not in (RATES[0], RATES[-1]))
        assert list(cell["test"]) == ["1", "2"]
        assert all(0 <= score <= 1 for score in [*cell["test"].values(), *cell["validation"].values()])
    assert [name for name, cell in cells.items() if "int8" in cell] == [f"once-{BY}-0.9"]
    longer = {name.partition("-")[0]: cell["longer"] for name, cell in cells.items() if "longer" in cell}
    assert set(longer) == set(STUDY["longer"]["variants"])
    assert all((list(each["test"]), each["steps"]) == (["1", "2"], LONGER) for each in longer.values())


@pytest.mark.parametrize("name", CELLS)
def test_a_model_has_the_sparsity_of_its_cell_and_the_pattern_it_began_with(done, cells, name):
    variant, _, sparsity = name.split("-")
    (scratch,) = (done[0] / "scratch").glob(f"study_*@topic-{name}")
    folders = [path for path in scratch.iterdir() if path.is_dir()]
    more = 2 if "longer" in cells[name] else 0
    assert len(folders) == len(cells[name]["validation"]) + 1 + more
    for folder in folders:
        pattern = masks.zeros(
            checkpoint.load_task_model(AutoModelForSequenceClassification, folder, attention="eager"), PRUNABLE
        )
        for layer, zero in pattern.items():
            assert int(zero.sum()) == masks.pruned_count(float(sparsity), zero.numel()), layer
        if variant.startswith("once"):
            begun = checkpoint.load_masked_lm(done[0] / f"study/data/sparsify/{BY}-0.9/model", attention="eager")
            masks.check_pattern(masks.zeros(begun, PRUNABLE), pattern)
    assert cells[name]["sparsity"] == pytest.approx(float(sparsity), abs=1e-3)


def test_seeds_give_other_models_and_a_rate_is_judged_by_validation_alone(done, cells):
    """The test split is larger, so a score of it would be another number."""
    folder, name = done[0], f"once-{BY}-0.9"
    (scratch,) = (folder / "scratch").glob(f"study_*@topic-{name}")
    rate = f"{cells[name]['learning_rate']:g}"
    one, two = (scratch / f"{rate}-{seed}-{STEPS}" for seed in (1, 2))
    assert (one / "model.safetensors").read_bytes() != (two / "model.safetensors").read_bytes()
    task = Task.read(folder / "data/tasks/topic", folder / "data/teach_task/topic", cpu_engine())
    model = task.model(one, attention="eager", dropout=0.0)
    assert cells[name]["validation"][rate] == pytest.approx(task.score(model, "validation"), abs=1e-6)
    assert cells[name]["test"]["1"] == pytest.approx(task.score(model, "test"), abs=1e-6)
    for seed, drawn in cells[name]["replicates"].items():
        assert len(drawn) == STUDY["recipe"]["resamples"]
        assert fmean(drawn) == pytest.approx(cells[name]["test"][seed], abs=0.05)


def test_sparsity_rises_while_the_task_is_learned(done):
    def course(name: str) -> list[float]:
        rows = [row for step, row in Log(done[0] / f"scratch/{name}").steps() if step % 5 == 0]
        return [value for row in rows for key, value in row.items() if key == f"0.002-1-{STEPS}/sparsity"]

    one_shot, gradual = (
        course(f"study_{stage}@topic-{v}-{BY}-0.9") for stage, v in (("one_shot", "one_shot"), ("late", "gradual"))
    )
    assert len(one_shot) == len(gradual) == STEPS // 5
    assert one_shot == pytest.approx([0.9] * len(one_shot), abs=1e-3)
    assert gradual[0] == 0
    assert gradual == sorted(gradual)
    assert 0.3 < gradual[1] < 0.9
    assert gradual[math.ceil(STUDY["recipe"]["prune_end_ratio"] * STEPS / 5)] == pytest.approx(0.9, abs=1e-3)


def test_the_table_says_what_the_cells_measured(done, cells):
    folder, metrics = done
    every = json.loads((folder / "study/table.json").read_text())["rows"]
    rows = {row["variant"]: row for row in every if row["bits"] == 32 and not row["longer"]}
    assert list(rows) == list(STUDY["variants"])
    (int8,) = (row for row in every if row["bits"] == 8)
    assert int8["scores"]["topic"] == list(cells[f"once-{BY}-0.9"]["int8"]["test"].values())
    assert int8["times_smaller"] == pytest.approx(17.8, abs=0.1)
    assert {row["longer"] for row in every} == {0, LONGER}
    assert rows["once"]["once_steps"] - rows["gradual"]["once_steps"] == study.document()["sparsify"]["steps"]
    assert metrics["study_table"]["topic"]["dense-none-0"] == fmean(cells["dense-none-0"]["test"].values())
    page = (folder / "study/table.md").read_text()
    assert page.count("\n| ") == 1 + len(every)
    assert "The ordering as a whole" in page
    with (folder / "study/sizes.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(every)


def test_a_second_time_and_stopped_on_its_way_gives_the_same_bytes(done, first, tmp_path):
    shutil.copytree(first.folder / "data", tmp_path / "data")
    shutil.copytree(done[0] / "study/data/sparsify", tmp_path / "study/data/sparsify")
    commands = {command.name: command for command in study.commands(study.document())}
    for name in list(commands)[1:]:
        if name == STOPPED:
            went_on = stopped_and_resumed(commands[name], tmp_path)
        else:
            study.run(commands[name], tmp_path, study.document())
    # Stopped in the third model's tenth step: two are not trained again, the third begins anew; then comes all else.
    assert next(iter(went_on.values())) == STEPS
    assert [name for name in went_on if name.startswith("int8")] == ["int8-1", "int8-2"]
    assert [name.rpartition("-")[2] for name in went_on][-2:] == [str(LONGER)] * 2
    assert outs(tmp_path) == outs(done[0])
    assert len(outs(tmp_path)) >= 15


def stopped_and_resumed(command: study.Command, folder: Path) -> Counter[str]:
    """Run a cell until a step of its third model, then again. Returns the steps that the second run took, by model."""
    seen: Counter[str] = Counter()

    def track(step: int, metrics: Any) -> None:
        seen[next(iter(metrics)).partition("/")[0]] += 1
        if len(seen) == 3 and step == 10:
            raise Stopped

    with pytest.raises(Stopped):
        study.run(command, folder, study.document(), Log(folder / "scratch" / command.name, track))
    assert not (folder / command.flags["metrics"]).exists()
    went_on: Counter[str] = Counter()
    log = Log(
        folder / "scratch" / command.name, lambda step, metrics: went_on.update([next(iter(metrics)).partition("/")[0]])
    )
    study.run(command, folder, study.document(), log)
    return went_on


def test_a_cell_that_is_stopped_while_it_saves_a_model_goes_on(done, tmp_path, monkeypatch):
    """A training keeps its state after every step; to the last one, sparsity rises."""
    shutil.copytree(done[0] / "data", tmp_path / "data")
    asked = study.document()
    asked["study"]["steps"], asked["study"]["longer"]["variants"] = {tiny.TASK: 21}, []
    asked["study"]["longer"]["steps"] = 22
    recipe = {"learning_rates": [2.0e-3], "first_learning_rate": 2.0e-3, "prune_every_steps": 5}
    asked["study"]["recipe"] |= recipe | {"prune_end_ratio": 1.0}
    (command,) = [c for c in study.commands(asked) if c.name == f"study_late@topic-gradual-{BY}-0.9"]

    def stop(model: Any, tokenizer: Any, folder: Path) -> None:
        folder.mkdir()
        raise Stopped

    scratch = tmp_path / "scratch" / command.name
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stop)
        with pytest.raises(Stopped):
            study.run(command, tmp_path, asked, Log(scratch, checkpoint_seconds=0.0))
    states = sorted(path.name for path in scratch.glob("*.safetensors"))
    assert states == ["0.002-1-21-00000019.safetensors", "0.002-1-21-00000020.safetensors"]
    taken: list[int] = []
    found = study.run(command, tmp_path, asked, Log(scratch, lambda step, metrics: taken.append(step)))
    assert taken[0] == 20
    assert found["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert not [*scratch.glob("*.safetensors"), *scratch.glob("*.part")]


def test_int8_that_was_finished_is_not_trained_again(done):
    folder, metrics = done
    (command,) = [c for c in study.commands(study.document()) if c.name == STOPPED]
    taken: list[int] = []
    log = Log(folder / "scratch" / command.name, lambda step, metrics: taken.append(step))
    assert study.run(command, folder, study.document(), log) == metrics[STOPPED]
    assert taken == []


def test_what_was_finished_and_is_damaged_is_made_again(done):
    """Weights of zeros load as well as any: a model in scratch is believed by its checksum alone."""
    folder, metrics = done
    (command,) = [c for c in study.commands(study.document()) if c.name == STOPPED]
    scratch = folder / "scratch" / command.name
    weights = scratch / f"0.002-1-{STEPS}/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4000] + bytes(4000))
    (scored,) = scratch.glob(f"*-2-{STEPS}.json")
    scored.write_text("1.0")
    taken: Counter[str] = Counter()
    log = Log(scratch, lambda step, metrics: taken.update([next(iter(metrics)).partition("/")[0]]))
    assert study.run(command, folder, study.document(), log) == metrics[STOPPED]
    assert set(taken) == {f"0.002-1-{STEPS}", "int8-2"}
    assert weights.read_bytes() == content


def test_under_dvc_a_stage_has_the_name_it_has_there_and_set_changes_one_value(done, project, monkeypatch):
    folder, _ = done
    shutil.copytree(folder / "study/data/cells", project.folder / "study/data/cells")
    (command,) = [c for c in study.commands(study.document()) if c.name == "study_table"]
    words = [word for flag, path in command.flags.items() for word in (f"--{flag}", path)]
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", project.environment["MLFLOW_TRACKING_URI"])
    monkeypatch.setenv("DVC_STAGE", "study/dvc.yaml:study_named@so")
    monkeypatch.setattr(sys, "argv", ["table", *words, "--set", "study.title=Otherwise"])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        stage.main(table.run)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert Path("study/table.md").read_text().startswith("# Otherwise\n")
    client, experiment = store.connect()
    (run,) = client.search_runs([experiment], "tags.`pruneonce.stage` = 'study_named@so'")
    assert run.data.tags["mlflow.source.name"] == "study/table.py"
    assert run.data.params["study.title"] == "Otherwise"


def test_the_variants_of_the_study_are_those_that_its_file_has_cells_of(project, monkeypatch):
    monkeypatch.chdir(project.folder)
    wired = order.variants(read_yaml(order.STUDY.folder / "dvc.yaml"))
    load().check_study(wired)
    assert sorted(wired) == sorted(STUDY["variants"])


def test_the_pipeline_passes_the_study_by_and_the_study_brings_what_it_stands_on(project, monkeypatch):
    monkeypatch.chdir(project.folder)
    pipeline, whole = order.in_order(order.COMPRESS), order.in_order(order.STUDY)
    assert sorted(pipeline) == sorted(command.name for command in tiny.commands(tiny.document()))
    mine = [f"study/dvc.yaml:{command.name}" for command in study.commands(study.document())]
    assert sorted(name for name in whole if "study" in name) == sorted(mine)
    assert whole[-1] == "study/dvc.yaml:study_table"
    below = [name for name in whole if "study" not in name]
    assert {name.partition("@")[0] for name in below} == {
        *("fetch_local", "prepare_task", "list_tasks", "prepare_corpus", "prepare_teacher", "teach_task"),
    }
    for first, then in (
        ("teach_task@topic", "study_dense@topic-dense-none-0"),
        (f"study_sparsify@{BY}-0.9", STOPPED),
    ):
        position = [next(i for i, name in enumerate(whole) if name.endswith(end)) for end in (first, then)]
        assert position == sorted(position)


def test_both_lock_files_are_read(tmp_path):
    (tmp_path / "study").mkdir()
    for path, name in (("dvc.lock", "report"), ("study/dvc.lock", "study_table")):
        entry = {"cmd": "python", "outs": [{"path": f"{name}.md", "md5": "0"}]}
        (tmp_path / path).write_text(json.dumps({"schema": "2.0", "stages": {name: entry}}))
    found = lock.locked(tmp_path)
    assert list(found) == ["report", "study_table"]
    assert [stage.name for stage in lock.producers("study/study_table.md", found)] == ["study_table"]


def test_what_dvc_does_with_the_pipeline_passes_the_study_by(project):
    """A clone that never ran the study has none of its outs: `dvc pull`, `dvc checkout` and `dvc exp apply` do not ask."""
    (project.folder / "dvc.yaml").write_text("stages: {}\n")  # nothing of the pipeline's own that would be missing
    done = project.run(sys.executable, "-m", "dvc", "checkout")
    assert done.returncode == 0, done.stderr
    status = [sys.executable, "-m", "dvc", "status", "--quiet"]
    assert project.run(*status).returncode == 0
    inside = replace(project, folder=project.folder / "study")
    assert inside.run(*status).returncode == 1  # asked there, DVC says that it never ran
