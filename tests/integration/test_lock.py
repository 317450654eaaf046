"""DVC and MLflow agree: the md5s are DVC's own, and every stage tags its run with them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo
from mlflow import MlflowClient

from flows import branch
from pipeline import hashing, stage, stopping
from pipeline.history import Log
from pipeline.params import bounds
from pipeline.params.reading import parse_yaml, read_yaml
from pipeline.stage import Metrics, Out
from pipeline.tracking import address, committed, flow_runs, lock, runs, store
from pipeline.tracking.lock import Stage
from pipeline.tracking.open_run import OpenRun
from pruneonce.errors import ConfigError
from tests.conftest import ROOT

PIPELINE = """
stages:
  grow:
    cmd: mkdir -p out/deep && cp seed.txt out/a && cp seed.txt 'out/deep/b c' && wc -c < seed.txt > size.txt
    deps: [seed.txt]
    params: [grow]
    outs:
      - out
      - size.txt: {cache: false}
  harvest:
    cmd: cat out/a size.txt > crop.txt
    deps: [out, size.txt]
    outs: [crop.txt]
"""


def dvc(folder: Path, *words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "dvc", *words], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which DVC has run two stages and added a folder with difficult names."""
    folder = tmp_path_factory.mktemp("grown")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    dvc(folder, "init", "--quiet")
    (folder / "seed.txt").write_text("seed\r\n")
    (folder / "params.yaml").write_text("grow: {rate: 1e-4}\n")
    (folder / "dvc.yaml").write_text(PIPELINE)
    dvc(folder, "repro", "--quiet")
    for name in ("b/2", "b-1", "b.1", "B/Ä ö.txt", "b/a/deep/\u65e5.bin", "empty", ".hidden", "10", "9"):
        path = folder / "names" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if name == "empty" else name.encode() * 100)
    (folder / "names/no-files").mkdir()
    (folder / "large.bin").write_bytes(os.urandom(3_000_000))
    dvc(folder, "add", "--quiet", "names", "large.bin")
    return folder


@pytest.fixture
def inside(grown, monkeypatch) -> Path:
    monkeypatch.chdir(grown)
    return grown


def test_md5s_are_those_that_dvc_records(inside):
    recorded = {path: md5 for stage in lock.locked().values() for path, md5 in {**stage.deps, **stage.outs}.items()}
    for name in ("names", "large.bin"):
        recorded[name] = read_yaml(Path(f"{name}.dvc"))["outs"][0]["md5"]
    assert recorded == {name: hashing.file_md5(Path(name)) for name in recorded}
    assert sorted(recorded) == ["crop.txt", "large.bin", "names", "out", "seed.txt", "size.txt"]
    assert sorted(name for name, md5 in recorded.items() if md5.endswith(".dir")) == ["names", "out"]


def test_one_byte_makes_another_md5(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_text("x")
    seen = {hashing.file_md5(tmp_path / "a")}
    (tmp_path / "a/b/c").write_text("y")
    seen.add(hashing.file_md5(tmp_path / "a"))
    (tmp_path / "a/b/c").rename(tmp_path / "a/c")
    seen.add(hashing.file_md5(tmp_path / "a"))
    assert len(seen) == 3


def test_dvc_lock_is_read_back(inside):
    stages = lock.locked()
    assert list(stages) == ["grow", "harvest"]
    assert stages["grow"].params == {"grow": {"rate": 1e-4}}
    assert set(stages["harvest"].deps) == {"out", "size.txt"}
    assert stages["harvest"].deps["out"] == stages["grow"].outs["out"]


def test_a_lock_grows_with_the_tasks_and_is_read(tmp_path):
    """A person's file of so many values is refused. The numbers are those of a task in this project's dvc.lock."""
    head, _, entries = (ROOT / "dvc.lock").read_text().partition("stages:\n")
    task = "".join(entry for entry in re.split(r"(?m)^(?=  \S)", entries) if entry.partition(":")[0].endswith("@r8"))
    tasks = [f"t{number}" for number in range(-(-bounds.MOST_CHARACTERS // len(task)) + 1)]
    text = f"{head}stages:\n" + "".join(task.replace("@r8:", f"@{name}:") for name in tasks)
    (tmp_path / "dvc.lock").write_text(text)
    stages = lock.locked(tmp_path)
    assert {name.partition("@")[2] for name in stages} == set(tasks)
    assert set(branch.entry(text, f"export@{tasks[-1]}")) == {"cmd", "deps", "params", "outs"}
    with pytest.raises(ConfigError, match="expected at most 2,000,000 characters"):
        parse_yaml(text, "params.yaml")


def test_aliases_of_a_lock_stand_for_no_more_than_it_has_characters(tmp_path):
    doubled = "".join(f"  a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))
    (tmp_path / "dvc.lock").write_text(f"stages:\n  a0: &a0 [x, x]\n{doubled}")
    with pytest.raises(ConfigError, match=r"at most 50,000 values in .*dvc\.lock, found more, with its aliases"):
        lock.locked(tmp_path)


def test_without_dvc_lock_there_are_no_stages(tmp_path):
    assert lock.locked(tmp_path) == {}


def test_current_names_are_those_that_dvc_gives():
    """Of all blocks of both files, with and without foreach and matrix."""
    values = read_yaml(ROOT / "params.yaml")
    files = [read_yaml(ROOT / folder / "dvc.yaml") for folder in lock.FOLDERS]
    names = [name for file in files for entry in file["stages"].items() for name in lock.cells(*entry, values)]
    found: list[str] = []
    for folder in lock.FOLDERS:
        with Repo(str(ROOT / folder)) as repo:
            found += [stage.addressing.rpartition(":")[2] for stage in repo.index.stages]
    assert sorted(names) == sorted(found)
    assert len(set(names)) == len(names) > 80, "no name in two projects"


def test_entries_of_stages_that_are_gone_are_not_current(tmp_path):
    """DVC keeps in dvc.lock what a former profile's tasks and sources left there."""
    (tmp_path / "params.yaml").write_text("tasks: {b: {}}\nrates: [0.5, 1e-4, true]\nempty:\n")
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  once: {cmd: x}\n  each: {foreach: '${tasks}', do: {cmd: x}}\n"
        "  none: {foreach: '${empty}', do: {cmd: x}}\n"
        "  grid: {matrix: {kind: [p, q], rate: '${rates}'}, cmd: x}\n"
    )
    now = ["once", "each@b", *(f"grid@{kind}-{rate}" for kind in "pq" for rate in ("0.5", "0.0001", "true"))]
    gone = ["once@b", "twice", "each@a", "each", "none@b", "grid@p-0.6", "grid@r-0.5"]
    entries = "".join(f"  {name}: {{cmd: x}}\n" for name in (*now, *gone))
    (tmp_path / "dvc.lock").write_text(f"schema: '2.0'\nstages:\n{entries}")
    assert sorted(lock.locked(tmp_path)) == sorted([*now, *gone])
    assert sorted(lock.current(tmp_path)) == sorted(now)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("out", ["grow"]),
        ("out/deep/b c", ["grow"]),
        ("size.txt", ["grow"]),
        ("crop.txt", ["harvest"]),
        ("seed.txt", []),
        ("ou", []),
        ("out-of-reach", []),
        ("crop.txt.bak", []),
    ],
)
def test_producers(inside, path, expected):
    assert [stage.name for stage in lock.producers(path, lock.locked())] == expected


def test_producers_of_a_folder_are_all_that_write_inside():
    stages = {name: Stage(name, {}, {f"data/raw/{name}": ""}, {}) for name in ("a", "b")}
    assert [s.name for s in lock.producers("data/raw", stages)] == ["a", "b"]
    assert [s.name for s in lock.producers("data/raw/a/x", stages)] == ["a"]


class TestRuns:
    """The runs of stages on a real store."""

    @pytest.fixture(autouse=True)
    def _store(self, inside, tracking_uri, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
        for name in (stopping.RAN, stopping.PARENT):
            monkeypatch.delenv(name, raising=False)

    def ran(self, name: str, deps: dict[str, str], outs: dict[str, str]) -> str:
        """A finished run of the stage."""
        with runs.stage_run(name, {}, deps) as tracked:
            tracked.log_outs(outs)
        return tracked.run_id

    def tags(self, run_id: str) -> dict[str, str]:
        return MlflowClient(address.uri()).get_run(run_id).data.tags

    def test_the_md5s_of_deps_and_outs_are_written_into_the_run(self):
        stage = lock.locked()["grow"]
        run_id = self.ran("grow", {"seed.txt": hashing.file_md5(Path("seed.txt"))}, stage.outs)
        tags = self.tags(run_id)
        assert json.loads(tags["pruneonce.outs"]) == stage.outs
        assert len(stage.outs) == 2
        assert json.loads(tags["pruneonce.deps"]) == {"seed.txt": stage.deps["seed.txt"]}
        assert json.loads(tags["pruneonce.versions"])["python"].startswith("3.11")
        assert "cores" in tags["pruneonce.processor"]
        assert run_id in runs.runs_of(stage)

    def test_a_run_that_made_one_of_the_outs_is_none_of_the_stages_runs(self):
        stage = lock.locked()["grow"]
        run_id = self.ran("grow", stage.deps, {**stage.outs, "size.txt": "0" * 32})
        assert "size.txt" in stage.outs
        assert run_id not in runs.runs_of(stage)

    def test_paths_with_any_characters(self):
        """Up two folders, brackets, a comma: the run says them as they are, and is found."""
        deps = {"../../raw/reviews (1), old.csv": "1" * 32, "/abs/ü": "2" * 32}
        stage = Stage("sow", deps, {"data/raw/a+b": "5" * 32}, {})
        run_id = self.ran("sow", deps, stage.outs)
        assert json.loads(self.tags(run_id)["pruneonce.deps"]) == deps
        assert runs.runs_of(stage) == [run_id]

    def test_an_experiment_of_dvc_is_one_run_with_the_scores_of_its_stages(self, monkeypatch):
        monkeypatch.setenv(committed.EXPERIMENT, "it's-one")
        found = []
        for name, metrics in (
            ("evaluate@a", {"int8": {"score": 0.5, "rows": 3}}),
            ("quantize@a", {"validation_score": 0.25}),
        ):
            with runs.stage_run(name, {}, {}) as tracked:
                tracked.log_scores(name, metrics)
            found.append(self.tags(tracked.run_id)["mlflow.parentRunId"])
        assert len(set(found)) == 1
        parent = MlflowClient(address.uri()).get_run(found[0])
        assert parent.data.metrics == {"a.int8.score": 0.5, "a.validation_score": 0.25}
        assert (parent.info.run_name, parent.info.status) == ("it's-one", "FINISHED")

    def test_more_paths_than_a_tag_holds(self):
        stage = Stage("sow", {}, {f"data/{n:04}": "5" * 32 for n in range(300)}, {})
        run_id = self.ran("sow", stage.deps, stage.outs)
        assert self.tags(run_id)["pruneonce.outs"] == "300 paths, too many for a tag"
        assert runs.runs_of(stage) == [run_id]

    def test_a_tracker_that_is_gone_at_the_end_of_a_flow_is_printed(self, monkeypatch, capsys):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        flow_runs.end_flow("r" * 32, "FINISHED", flow_runs.Finished({"grow": 1.0}))
        assert f"no longer answers; run {'r' * 32} stays open there" in capsys.readouterr().err

    def test_a_parent_run_is_kept(self, monkeypatch):
        monkeypatch.setenv(stopping.PARENT, "p" * 32)
        assert self.tags(self.ran("grow", {}, {}))["mlflow.parentRunId"] == "p" * 32


def nap(out: Out, *, log: Log) -> Metrics:
    """A stage with a checkpoint."""
    log(0, {"loss": 1.0})
    out.write_text("rested")
    return {"hours": 8}


@pytest.fixture
def napping(project, tracking_uri, monkeypatch) -> Path:
    """The folder of a project in which `nap` can run as a stage."""
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    monkeypatch.delenv(stopping.RAN, raising=False)
    monkeypatch.setattr(sys, "argv", ["nap", "--out", "data/out", "--metrics", "data/nap.json"])
    return project.folder


def checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob(".pruneonce/scratch/nap-*/history.jsonl"))


@pytest.mark.parametrize("mark", ["ran", "no-folder/ran"])
def test_a_flow_sees_that_a_stage_ran_and_a_finished_stage_does_not_fail(napping, tmp_path, monkeypatch, mark):
    monkeypatch.setenv(stopping.RAN, str(tmp_path / mark))
    stage._main(nap, "nap")
    assert (tmp_path / mark).exists() == (mark == "ran")
    assert json.loads((napping / "data/nap.json").read_text()) == {"hours": 8}
    assert checkpoints(napping) == [], "done is done"


def test_checkpoints_outlive_whatever_may_still_fail(napping, monkeypatch):
    def fails(*_) -> None:
        raise RuntimeError("not foreseen")

    monkeypatch.setattr(OpenRun, "log_outs", fails)
    with pytest.raises(RuntimeError, match="not foreseen"):
        stage._main(nap, "nap")
    assert len(checkpoints(napping)) == 1


def test_a_stage_that_does_not_ask_for_a_log_gets_none(napping, monkeypatch):
    def rest(out: Out) -> Metrics:
        out.write_text("rested")
        return {}

    assert stage.contract(rest) == {
        kind: ["out"] if kind == "out" else [] for kind in (*stage.KINDS, "section", "log", "origin")
    }
    stage._main(rest, "rest")
    assert Path("data/out").read_text() == "rested"


def test_a_plain_dvc_repro_tags_its_runs(project, tracking_uri, monkeypatch):
    """No flow: the stage itself tags its run with the md5s that DVC records after it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    dvc_word = [sys.executable, "-m", "dvc", "repro", "--quiet", "fetch_local@tiny-bert"]
    python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = project.run(*dvc_word, PATH=python)
    assert done.returncode == 0, done.stderr
    stage = lock.locked(project.folder)["fetch_local@tiny-bert"]
    assert set(stage.outs) == {"data/raw/tiny-bert", "data/metrics/fetch_local/tiny-bert.json"}
    for path, md5 in {**stage.deps, **stage.outs}.items():
        assert hashing.file_md5(project.folder / path) == md5
    assert json.loads((project.folder / "data/metrics/fetch_local/tiny-bert.json").read_text())["files"] == 3
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(store.EXPERIMENT)
    (run_id,) = runs.runs_of(stage)
    run = client.get_run(run_id)
    assert run.info.experiment_id == experiment.experiment_id
    assert (run.info.run_name, run.info.status) == ("fetch_local@tiny-bert", "FINISHED")
    tags = run.data.tags
    assert json.loads(tags["pruneonce.outs"]) == stage.outs
    assert json.loads(tags["pruneonce.deps"]) | json.loads(tags["pruneonce.code"]) == stage.deps
    assert {"tests/tiny/model", "stages/fetch_local.py"} < set(stage.deps)
    assert tags["mlflow.source.name"] == "stages/fetch_local.py"
