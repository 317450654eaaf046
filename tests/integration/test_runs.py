"""MLflow's own store under what happens to it: a kill, a second process, a full disk, a lock, a deleted experiment."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ErrorCode

from flows import compress
from pipeline import cli, hashing, stopping
from pipeline.history import Log
from pipeline.lineage import trace
from pipeline.tracking import address, database, flow_runs, handover, lock, registry, runs, store
from pipeline.tracking.lock import Stage
from pruneonce.errors import TrackerUnreachable
from tests.conftest import ROOT, copy_store

CONNECT = "from pipeline.tracking import store; print(store.connect()[1])"


def python(code: str, folder: Path) -> subprocess.Popen[str]:
    """A process in the folder that MLflow's default store belongs to."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PRUNEONCE_"))}
    env = {**inherited, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True)


def test_a_first_run_that_is_killed_at_any_moment_costs_nothing(tmp_path):
    """At two sizes of the file in the making; then two at once on what is left."""
    for size in (1, 500_000):
        process, part = python(CONNECT, tmp_path), tmp_path / "mlflow.db.part"
        while process.poll() is None and not (part.exists() and part.stat().st_size >= size):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was too fast for this test"
        assert not (tmp_path / "mlflow.db").exists()
        assert part.exists()
    both = [python(CONNECT, tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [out for out, _ in said] == ["1\n", "1\n"]
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "mlflow.db.lock"}


@pytest.fixture
def folder(tmp_path, empty_store, monkeypatch) -> Path:
    """An empty project with a store of its own."""
    copy_store(empty_store, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for name in (stopping.RAN, stopping.PARENT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(database, "WAIT_SECONDS", 0.2)
    return tmp_path


KILLED = """
import os, signal
from pathlib import Path
from pipeline import history, stopping
from pipeline.tracking import flow_runs, runs
flow = flow_runs.start_flow("compress", {})
os.environ[stopping.PARENT] = flow
with runs.stage_run("sparsify", {"common.seed": 1}, {"data/x": "1" * 32}, scratch=Path("scratch")) as tracked:
    log = history.Log(Path("scratch"), tracked.log_step)
    for step in range(12):
        log(step, {"loss": 1.0 / (step + 1)})
        if step == 8:
            tracked.flush()
    print(flow, tracked.run_id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def kill(tmp_path_factory, empty_store) -> tuple[Path, tuple[str, ...]]:
    """A folder in which a process was killed in step 12, and the ids of its flow's and its stage's runs."""
    folder = tmp_path_factory.mktemp("kill")
    copy_store(empty_store, folder)
    out, err = python(KILLED, folder).communicate(timeout=240)
    assert len(out.split()) == 2, err
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as base:
        base.execute("SELECT * FROM runs").fetchall()  # the first reader takes back what the kill left half done
    return folder, tuple(out.split())


@pytest.fixture
def killed(folder, kill) -> tuple[str, ...]:
    """Those ids; `folder` is as the kill left it."""
    left, ids = kill
    copy_store(left / "mlflow.db", folder)
    shutil.copytree(left / "scratch", folder / "scratch")
    return ids


def status(run_id: str) -> str:
    return MlflowClient(address.uri()).get_run(run_id).info.status


def test_a_killed_stage_goes_on_with_its_run(folder, killed):
    flow, run_id = killed
    assert (status(flow), status(run_id)) == ("RUNNING", "RUNNING")
    with runs.stage_run("sparsify", {"common.seed": 1}, {"data/x": "1" * 32}, scratch=Path("scratch")) as tracked:
        assert tracked.run_id == run_id
        assert (status(flow), status(run_id)) == ("KILLED", "RUNNING")
        log = Log(Path("scratch"), tracked.log_step)
        tracked.catch_up(log.steps())
        for step in range(10, 20):  # from the checkpoint
            log(step, {"loss": 1.0 / (step + 1)})
        tracked.log_outs({"data/y": "2" * 32})
    client = MlflowClient(address.uri())
    history = client.get_metric_history(run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [(step, 1.0 / (step + 1)) for step in range(20)]
    assert status(run_id) == "FINISHED"
    assert runs.runs_of(Stage("sparsify", {}, {"data/y": "2" * 32}, {})) == [run_id]
    assert len(client.search_runs(["1"], "tags.`pruneonce.stage` = 'sparsify'")) == 1


def test_a_run_whose_process_was_killed_as_it_was_made_is_continued(folder, monkeypatch):
    made: list[str] = []
    real = MlflowClient.create_run

    def create(self, *words, **named):
        made.append(real(self, *words, **named).info.run_id)
        raise KeyboardInterrupt  # in the place of a kill

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_run", create)
        with pytest.raises(KeyboardInterrupt), runs.stage_run("sparsify", {}, {}, scratch=Path("scratch")):
            pytest.fail("it is begun")
    assert Path("scratch/run").read_text() not in made
    with runs.stage_run("sparsify", {}, {}, scratch=Path("scratch")) as tracked:
        assert [tracked.run_id] == made
    assert status(tracked.run_id) == "FINISHED"


def test_a_run_that_is_gone_is_begun_anew(folder, killed):
    MlflowClient(address.uri()).delete_run(killed[1])
    with runs.stage_run("sparsify", {}, {}, scratch=Path("scratch")) as tracked:
        assert tracked.run_id != killed[1]
    Path("scratch/run").write_text("0" * 32)  # of another store
    with runs.stage_run("sparsify", {}, {}, scratch=Path("scratch")) as tracked:
        assert Path("scratch/run").read_text() == tracked.run_id


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"0" * 31, b"0" * 33, b"../../x", ("\u0663" * 32).encode(), None])
def test_a_name_of_a_run_that_is_damaged_names_none(folder, content):
    Path("scratch").mkdir()
    Path("scratch/run/deep").mkdir(parents=True) if content is None else Path("scratch/run").write_bytes(content)
    with runs.stage_run("sparsify", {}, {}, scratch=Path("scratch")) as tracked:
        assert Path("scratch/run").read_text() == tracked.run_id
    assert status(tracked.run_id) == "FINISHED"


def test_a_run_is_ours_before_it_is_open(folder, killed, monkeypatch):
    """Else another process that looks in between closes it: its process is gone."""
    client, update = MlflowClient(address.uri()), MlflowClient.update_run

    def look(self, run_id, **changes):
        assert client.get_run(run_id).data.tags[runs.PROCESS].startswith(f"{os.getpid()} ")
        update(self, run_id, **changes)

    monkeypatch.setattr(MlflowClient, "update_run", look)
    with runs.stage_run("sparsify", {}, {}, scratch=Path("scratch")) as tracked:
        assert tracked.run_id == killed[1]
        assert status(killed[1]) == "RUNNING"


def test_a_lost_run_that_cannot_be_closed_stops_nobody(folder, killed, monkeypatch):
    ended = MlflowClient.set_terminated

    def refuse(self, run_id, *words):
        if run_id == killed[0]:
            raise MlflowException("deleted", error_code=ErrorCode.Value("INVALID_PARAMETER_VALUE"))
        ended(self, run_id, *words)

    monkeypatch.setattr(MlflowClient, "set_terminated", refuse)
    with runs.stage_run("report", {}, {}) as tracked:
        assert [status(run_id) for run_id in killed] == ["RUNNING", "KILLED"]
    assert status(tracked.run_id) == "FINISHED"


def test_the_open_runs_of_a_dead_machine_are_closed_before_its_work_goes_to_another(folder):
    client, parent = MlflowClient(address.uri()), flow_runs.start_flow("compress", {})

    def open_run(stage: str, below: str) -> str:
        tags = {"pruneonce.stage": stage, "mlflow.parentRunId": below, runs.HOST: "dead", runs.PROCESS: "1 1.0"}
        return client.create_run("1", tags=tags).info.run_id

    lost, of_another_branch, of_another_run = open_run("a", parent), open_run("b", parent), open_run("a", "f" * 32)
    finished = open_run("a", parent)
    client.set_terminated(finished, "FINISHED")
    assert handover.close_runs({parent, "0" * 32}, ["a"]) == [lost]
    assert status(lost) == "KILLED"
    assert status(finished) == "FINISHED"
    assert {status(run_id) for run_id in (parent, of_another_branch, of_another_run)} == {"RUNNING"}


def test_what_a_killed_process_left_open_is_closed(folder, killed):
    client = MlflowClient(address.uri())
    mine = flow_runs.start_flow("compress", {})
    assert [status(run_id) for run_id in killed] == ["KILLED", "KILLED"]
    others = client.create_run("1", tags={runs.HOST: "another-machine", runs.PROCESS: "4194305 1.0"}).info.run_id
    nobodys = client.create_run("1").info.run_id
    assert list(runs.catch_up()) == []
    assert {status(run_id) for run_id in (mine, others, nobodys)} == {"RUNNING"}
    client.set_tag(mine, runs.PROCESS, f"{os.getpid()} 1.0")  # our number, long ago
    assert list(registry.update()) == ["compress: its process is gone, so its run is closed as KILLED"]
    assert (status(mine), status(others)) == ("KILLED", "RUNNING")


def traced(file: str) -> str:
    return "\n".join(trace.full(file))


@pytest.fixture
def finished(folder) -> str:
    """The run of a stage that has ended, whose file is to be registered."""
    md5 = {}
    for path in ("data/export/topic/int8.onnx", "data/scores.json"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(path)
        md5[path] = hashing.file_md5(Path(path))
    shipped, scores = md5
    entries = {
        "export@topic": {"cmd": "x", "outs": [{"path": shipped, "md5": md5[shipped]}]},
        "evaluate@topic": {
            "cmd": "x",
            "deps": [{"path": shipped, "md5": md5[shipped]}],
            "outs": [{"path": scores, "md5": md5[scores]}],
        },
    }
    Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": entries}))
    block = {"foreach": "${tasks}", "do": {"cmd": "x"}}
    Path("dvc.yaml").write_text(json.dumps({"stages": {"export": block, "evaluate": block}}))
    Path("params.yaml").write_text(json.dumps({"tasks": {"topic": {}}}))
    with runs.stage_run("export@topic", {}, {}) as tracked:
        tracked.log_outs({shipped: md5[shipped]})
    return tracked.run_id


HOLD = "import sqlite3; b = sqlite3.connect('mlflow.db'); b.execute('BEGIN EXCLUSIVE'); print(flush=True); input()"


@contextlib.contextmanager
def locked() -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        yield "database is locked. Another process holds it: wait for it or end it, and run again."
        holder.communicate(b"\n")


@contextlib.contextmanager
def deleted() -> Iterator[str]:
    client = MlflowClient(address.uri())
    client.delete_experiment("1")
    yield "it was deleted. Bring it back, with MLFLOW_TRACKING_URI set to that address: mlflow experiments restore --exper"
    client.restore_experiment("1")


@contextlib.contextmanager
def spoiled() -> Iterator[str]:
    shutil.move("mlflow.db", "aside.db")
    Path("mlflow.db").write_text("not a database, but a text of some length\n" * 100)
    yield "file is not a database. Move "
    shutil.move("aside.db", "mlflow.db")


@pytest.mark.parametrize("trouble", [locked, deleted, spoiled])
def test_what_fails_is_one_line_wherever_it_is_met(finished, folder, capfd, monkeypatch, trouble):
    with trouble() as said:
        for what in (store.connect, lambda: list(runs.catch_up()), lambda: flow_runs.start_flow("compress", {})):
            with pytest.raises(TrackerUnreachable) as caught:
                what()
            assert said in str(caught.value)
        with pytest.raises(TrackerUnreachable, match=r"Nothing was started\.$"), runs.stage_run("report", {}, {}):
            pytest.fail("it is begun")
        assert capfd.readouterr().err == ""
        (line,) = compress.register()
        assert line.startswith("Not all models were registered (expected ")
        assert said in line
        assert line.endswith("Try again with: pruneonce register")
        monkeypatch.setattr(sys, "argv", ["pruneonce", "register"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert str(ended.value.code).startswith("TrackerUnreachable: expected ")
        assert said in str(ended.value.code)
        assert capfd.readouterr() == ("", "")
        lines = traced("data/scores.json")
        assert lines.count(said) == 1, "and not again for each stage"
        assert lines.splitlines()[-1].startswith("(MLflow's runs are unknown: expected ")
        assert capfd.readouterr().err == ""
    assert f"run     {finished}" in traced("data/export/topic/int8.onnx")
    MlflowClient(address.uri()).delete_tag(finished, "pruneonce.outs.digest")
    cli.main()
    assert capfd.readouterr().out == "", "nothing was left to do, and no blank line says so"


def test_a_full_disk_is_one_line_also_when_a_run_is_made(empty_store, tmp_path, monkeypatch, capfd):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        shutil.copy(empty_store, disk / "mlflow.db")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk}/mlflow.db")
        store.connect()
        with contextlib.suppress(OSError), (disk / "fill").open("wb", buffering=0) as file:
            while file.write(b"0" * 4096):
                pass
        with pytest.raises(TrackerUnreachable, match=r"disk is full.* Free some space and run again\. Nothing was started"):
            flow_runs.start_flow("compress", {})
        with pytest.raises(TrackerUnreachable, match=r"disk is full"), runs.stage_run("report", {}, {}):
            pytest.fail("it is begun")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk}/new.db")
        with pytest.raises(TrackerUnreachable, match=r"(disk is full|disk I/O error).* Free some space.* run again\."):
            store.connect()
        assert {path.name for path in disk.iterdir()} <= {"fill", "mlflow.db", "new.db.lock"}, "nothing half made"
        assert "Traceback" not in capfd.readouterr().err
        (disk / "fill").unlink()
        assert store.connect()[1] == "1"
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_task_that_was_not_run_here_has_no_registered_model(finished, folder):
    """Its file came from DVC's cache; the run that made it is in another store."""
    client = MlflowClient(address.uri())
    client.delete_tag(finished, "pruneonce.outs.digest")
    assert list(registry.register(lock.current())) == []
    assert client.search_registered_models() == []


def test_a_task_that_params_yaml_no_longer_has_is_not_registered(finished, monkeypatch):
    asked: list[dict] = []
    monkeypatch.setattr(registry, "register", lambda stages: asked.append(stages) or [])
    list(compress.register())
    Path("params.yaml").write_text("tasks: {r8: {}}\n")
    list(compress.register())
    assert [sorted(stages) for stages in asked] == [["evaluate@topic", "export@topic"], []]


STOPPED = """
import signal
from flows import stopping

stopping.listen()
stopping.CLOSING_SECONDS = 60.0
from pipeline.tracking import flow_runs

sweep = flow_runs.start_flow("sweep", {})
flow_runs.end_flow(flow_runs.start_flow("done", {}, parent=sweep), "FINISHED")
flow_runs.start_flow("cell", {}, parent=sweep)
signal.raise_signal(signal.SIGINT)
"""


def test_ctrl_c_closes_every_run_that_the_flow_opened(empty_store, tmp_path):
    """That of a sweep lies above those of its cells."""
    copy_store(empty_store, tmp_path)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store, "PYTHONPATH": str(ROOT)}
    environment.pop(stopping.PARENT, None)
    done = subprocess.run([sys.executable, "-c", STOPPED], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, "Stopped by Ctrl-C" in done.stderr) == (130, True), done.stderr
    found = {run.info.run_name: run.info.status for run in MlflowClient(store).search_runs(["1"])}
    assert found == {"sweep": "KILLED", "done": "FINISHED", "cell": "KILLED"}
