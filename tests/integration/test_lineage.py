"""DVC and MLflow tell one story: the md5s are DVC's own, and the runs are sealed with them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from dvc.repo import Repo
from mlflow import MlflowClient

from pipeline import lineage, stage, tracking
from pipeline.lineage import Stage
from pipeline.params.reading import read_yaml
from pipeline.stage import Log, Metrics, Out
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
    recorded = {path: md5 for stage in lineage.locked().values() for path, md5 in {**stage.deps, **stage.outs}.items()}
    for name in ("names", "large.bin"):
        recorded[name] = read_yaml(Path(f"{name}.dvc"))["outs"][0]["md5"]
    assert recorded == {name: lineage.file_md5(Path(name)) for name in recorded}
    assert sorted(recorded) == ["crop.txt", "large.bin", "names", "out", "seed.txt", "size.txt"]
    assert sorted(name for name, md5 in recorded.items() if md5.endswith(".dir")) == ["names", "out"]


def test_one_byte_makes_another_md5(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_text("x")
    seen = {lineage.file_md5(tmp_path / "a")}
    (tmp_path / "a/b/c").write_text("y")
    seen.add(lineage.file_md5(tmp_path / "a"))
    (tmp_path / "a/b/c").rename(tmp_path / "a/c")
    seen.add(lineage.file_md5(tmp_path / "a"))
    assert len(seen) == 3


def test_dvc_lock_is_read_back(inside):
    stages = lineage.locked()
    assert list(stages) == ["grow", "harvest"]
    assert stages["grow"].params == {"grow": {"rate": 1e-4}}
    assert set(stages["harvest"].deps) == {"out", "size.txt"}
    assert stages["harvest"].deps["out"] == stages["grow"].outs["out"]


def test_without_dvc_lock_there_are_no_stages(tmp_path):
    assert lineage.locked(tmp_path) == {}


def test_current_names_are_those_that_dvc_gives():
    """Of all blocks of both files, with and without foreach and matrix."""
    values = read_yaml(ROOT / "params.yaml")
    files = [read_yaml(ROOT / path.with_suffix(".yaml")) for path in lineage.LOCKS]
    names = [name for file in files for entry in file["stages"].items() for name in lineage._names(*entry, values)]
    with Repo(str(ROOT)) as repo, Repo(str(ROOT / "study")) as study:
        stages = [*repo.index.stages, *study.index.stages]
        assert sorted(names) == sorted(stage.addressing.rpartition(":")[2] for stage in stages)
    assert len(names) > 35


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
    assert sorted(lineage.locked(tmp_path)) == sorted([*now, *gone])
    assert sorted(lineage.current(tmp_path)) == sorted(now)


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
    assert [stage.name for stage in lineage.producers(path, lineage.locked())] == expected


def test_producers_of_a_folder_are_all_that_write_inside():
    stages = {name: Stage(name, {}, {f"data/raw/{name}": ""}, {}) for name in ("a", "b")}
    assert [s.name for s in lineage.producers("data/raw", stages)] == ["a", "b"]
    assert [s.name for s in lineage.producers("data/raw/a/x", stages)] == ["a"]


class TestSeal:
    """`lineage.seal` on a real store: what a stage left behind, after DVC recorded its outs."""

    @pytest.fixture(autouse=True)
    def _store(self, inside, tracking_uri, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
        for name in (lineage.IN_FLOW, tracking.PARENT):
            monkeypatch.delenv(name, raising=False)
        yield
        for path in lineage.UNSEALED.glob("*"):
            path.unlink()

    def ran(self, name: str, deps: dict[str, str], outs: dict[str, str] | None = None) -> str:
        """A finished run of the stage, waiting to be sealed."""
        with tracking.stage_run(name, {}, deps) as tracked:
            pass
        lineage.leave_for_sealing(tracked.run_id, outs or {})
        assert [p.name for p in lineage.UNSEALED.iterdir()] == [tracked.run_id]
        return tracked.run_id

    def tags(self, run_id: str) -> dict[str, str]:
        return MlflowClient(tracking.uri()).get_run(run_id).data.tags

    def test_the_outs_md5s_are_written_into_the_run(self):
        stage = lineage.locked()["grow"]
        run_id = self.ran("grow", {"seed.txt": lineage.file_md5(Path("seed.txt"))})
        assert "pruneonce.sealed" not in self.tags(run_id)
        assert lineage.seal() == ["grow"]
        tags = self.tags(run_id)
        assert {k: v for k, v in tags.items() if k.startswith("out.")} == {f"out.{p}": m for p, m in stage.outs.items()}
        assert len(stage.outs) == 2
        assert tags["dep.seed.txt"] == stage.deps["seed.txt"]
        assert tags["pruneonce.sealed"] == "true"
        assert run_id in tracking.runs_of(stage)
        assert list(lineage.UNSEALED.iterdir()) == []
        assert lineage.seal() == [], "there is nothing left to seal"

    def test_a_run_that_made_one_of_the_outs_is_none_of_the_stages_runs(self):
        stage = lineage.locked()["grow"]
        run_id = self.ran("grow", stage.deps)
        lineage.seal()
        MlflowClient(tracking.uri()).set_tag(run_id, "out.size.txt", "0" * 32)
        assert "out.size.txt" in {f"out.{path}" for path in stage.outs}
        assert run_id not in tracking.runs_of(stage)

    def test_a_run_on_other_deps_is_not_sealed(self):
        run_id = self.ran("grow", {"seed.txt": "0" * 32})
        assert lineage.seal() == []
        assert not [k for k in self.tags(run_id) if k.startswith("out.") or k == "pruneonce.sealed"]
        assert run_id not in tracking.runs_of(lineage.locked()["grow"])
        assert list(lineage.UNSEALED.iterdir()) == []

    def test_a_run_of_no_stage_of_dvc_lock_is_not_sealed(self):
        run_id = self.ran("burn", {})
        assert lineage.seal() == []
        assert "pruneonce.sealed" not in self.tags(run_id)

    def test_a_run_that_was_deleted_does_not_stop_the_others(self):
        run_id = self.ran("harvest", {})
        (lineage.UNSEALED / ("0" * 32)).touch()
        assert lineage.seal() == ["harvest"]
        assert self.tags(run_id)["pruneonce.sealed"] == "true"

    def test_paths_that_mlflow_takes_no_tag_of(self):
        """Up two folders, with characters that it refuses: the run is sealed, and found."""
        deps = {
            "../../raw/reviews (1), old.csv": "1" * 32,
            "/abs/x": "2" * 32,
            "a/../b": "3" * 32,
            "plain-1.0/x y": "4" * 32,
        }
        stage = Stage("sow", deps, {"data/raw/a+b": "5" * 32}, {})
        run_id = self.ran("sow", deps)
        assert tracking.seal(run_id, {}, {"sow": stage}) == "sow"
        tags = {key: md5 for key, md5 in self.tags(run_id).items() if key[:4] in ("dep.", "out.")}
        assert tags == {
            "dep.up/up/raw/reviews _1__ old.csv": "1" * 32,
            "dep./abs/x": "2" * 32,
            "dep.b": "3" * 32,
            "dep.plain-1.0/x y": "4" * 32,
            "out.data/raw/a_b": "5" * 32,
        }
        assert tracking.runs_of(stage) == [run_id]
        assert tracking.seal(run_id, {}, {"sow": Stage("sow", {**deps, "/abs/x": "0" * 32}, stage.outs, {})}) is None

    def test_a_tracker_that_is_gone_is_said_and_the_runs_go_on_waiting(self, monkeypatch, capsys):
        run_id = self.ran("grow", lineage.locked()["grow"].deps)
        here = tracking.uri()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        assert lineage.seal() == []
        tracking.end_flow(run_id, "FINISHED", {"grow": 1.0}, "note")
        said = capsys.readouterr().err
        assert "Not all runs were sealed: expected an MLflow tracking store at http://127.0.0.1:9, found: " in said
        assert "Later: pruneonce seal" in said
        assert f"no longer answers; run {run_id} stays open there" in said
        assert [p.name for p in lineage.UNSEALED.iterdir()] == [run_id]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", here)
        assert lineage.seal() == ["grow"]

    def test_in_a_flow_the_mark_is_touched(self, tmp_path, monkeypatch):
        monkeypatch.setenv(lineage.IN_FLOW, str(tmp_path / "ran"))
        lineage.leave_for_sealing("r", {})
        assert (tmp_path / "ran").exists()

    def test_a_parent_run_is_kept(self, monkeypatch):
        monkeypatch.setenv(tracking.PARENT, "p" * 32)
        assert self.tags(self.ran("grow", {}))["mlflow.parentRunId"] == "p" * 32


class Forbidden:
    """An ancestor that psutil may not look at."""

    def cmdline(self) -> list[str]:
        raise psutil.AccessDenied


def test_dvc_is_found_beyond_a_process_that_may_not_be_looked_at(monkeypatch):
    dvc = SimpleNamespace(pid=4711, cmdline=lambda: ["python", "/usr/bin/dvc", "repro"])
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parents=lambda: [Forbidden(), dvc]))
    assert lineage._dvc_ancestor() == 4711


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
    monkeypatch.delenv(lineage.IN_FLOW, raising=False)
    monkeypatch.setattr(sys, "argv", ["nap", "--out", "data/out", "--metrics", "data/nap.json"])
    return project.folder


def checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob(".pruneonce/scratch/nap-*/history.jsonl"))


def test_a_finished_stage_does_not_fail_for_want_of_sealing(napping, capsys):
    (napping / ".pruneonce").mkdir()
    (napping / ".pruneonce/unsealed").write_text("no folder")
    stage._main(nap, "nap")
    assert "was not handed over for sealing (FileExistsError" in capsys.readouterr().err
    assert json.loads((napping / "data/nap.json").read_text()) == {"hours": 8}
    assert checkpoints(napping) == [], "done is done"


def test_checkpoints_outlive_whatever_may_still_fail(napping, monkeypatch):
    def fails(run_id: str, outs: dict[str, str]) -> None:
        raise RuntimeError("not foreseen")

    monkeypatch.setattr(lineage, "leave_for_sealing", fails)
    with pytest.raises(RuntimeError, match="not foreseen"):
        stage._main(nap, "nap")
    assert len(checkpoints(napping)) == 1


def test_a_plain_dvc_repro_is_sealed_after_it_ended(project, tracking_uri):
    """No flow: a process of ours waits for DVC to write dvc.lock, then seals."""
    dvc_word = [sys.executable, "-m", "dvc", "repro", "--quiet", "fetch_local@tiny-bert"]
    python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = project.run(*dvc_word, PATH=python)
    assert done.returncode == 0, done.stderr
    stage = lineage.locked(project.folder)["fetch_local@tiny-bert"]
    assert set(stage.outs) == {"data/raw/tiny-bert", "data/metrics/fetch_local/tiny-bert.json"}
    for path, md5 in {**stage.deps, **stage.outs}.items():
        assert lineage.file_md5(project.folder / path) == md5
    assert json.loads((project.folder / "data/metrics/fetch_local/tiny-bert.json").read_text())["files"] == 3
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(tracking.EXPERIMENT)
    until, sealed = time.monotonic() + 60, []
    while not sealed and time.monotonic() < until:
        query = f"tags.`pruneonce.sealed` = 'true' and tags.`out.data/raw/tiny-bert` = '{stage.outs['data/raw/tiny-bert']}'"
        sealed = client.search_runs([experiment.experiment_id], query)
        time.sleep(0.5)
    assert [run.info.run_name for run in sealed] == ["fetch_local@tiny-bert"]
    assert sealed[0].info.status == "FINISHED"
    assert sealed[0].data.tags["dep.pruneonce/sources.py"] == stage.deps["pruneonce/sources.py"]
    while list((project.folder / ".pruneonce/unsealed").iterdir()) and time.monotonic() < until:
        time.sleep(0.2)
    assert not list((project.folder / ".pruneonce/unsealed").iterdir())


def test_the_log_of_who_seals_is_closed_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(lineage.IN_FLOW, raising=False)
    monkeypatch.setattr(lineage, "_dvc_ancestor", lambda: 1)
    given = []
    monkeypatch.setattr(subprocess, "Popen", lambda *words, stdout, **more: given.append(stdout))
    lineage.leave_for_sealing("0" * 32, {})
    assert [log.closed for log in given] == [True]
