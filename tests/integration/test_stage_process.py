"""A stage as a process: it reads what dvc.lock says or stops, has a scratch folder alone, ends with what started it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from pipeline import hashing, integrity, processes
from pruneonce.errors import AlreadyRunning, ConfigError, DataError, PipelineError
from tests import warm
from tests.conftest import ROOT, commit, wait_for
from tests.integration import tiny

GROW = """
import time
from pathlib import Path
from pipeline.params.sections import Common
from pipeline.history import Log
from pipeline.stage import Dep, Metrics, Out, main

def run(seed: Dep, model: Out, *, common: Common, log: Log) -> Metrics:
    model.mkdir(parents=True)
    (model / "weights").write_bytes(seed.read_bytes() * 500)
    (model / "config").write_bytes(seed.read_bytes())
    log(5, {"loss": 1.0})
    end = time.monotonic() + (30 if Path("slow").exists() else 0)
    Path("pid").write_text(str(__import__("os").getpid()))
    while time.monotonic() < end:
        time.sleep(0.05)
    return {}

if __name__ == "__main__":
    main(run)
"""
COUNT = """
from pipeline.params.sections import Common
from pipeline.history import Log
from pipeline.stage import Dep, Metrics, Out, main

def run(models: Dep, table: Out, *, common: Common, log: Log) -> Metrics:
    table.write_text(str(sum(sum(path.read_bytes()) for path in models.glob("*/weights"))))
    return {}

if __name__ == "__main__":
    main(run)
"""
PIPELINE = """
stages:
  grow:
    cmd: python grow.py --seed seed.txt --model data/models/one --metrics data/grow.json
    deps: [seed.txt, grow.py]
    outs: [data/models/one]
    metrics: [{data/grow.json: {cache: false}}]
  count:
    cmd: python count.py --models data/models --table data/table.txt --metrics data/count.json
    deps: [data/models, count.py]
    outs: [data/table.txt]
    metrics: [{data/count.json: {cache: false}}]
"""
WEIGHTS = Path("data/models/one/weights")


@pytest.fixture(scope="module")
def grown(tmp_path_factory, tracking_uri: str) -> Path:
    """A repository of two stages, one of which reads the folder that the other one's out lies in; the first has run."""
    folder = tmp_path_factory.mktemp("grown")
    for name, text in (("grow.py", GROW), ("count.py", COUNT), ("dvc.yaml", PIPELINE), ("seed.txt", "seed of a model")):
        (folder / name).write_text(text)
    shutil.copy(ROOT / "profiles/tiny.yaml", folder / "params.yaml")
    commit(folder)
    words(folder, tracking_uri, "dvc", "init", "--quiet")
    words(folder, tracking_uri, "dvc", "repro", "grow")
    return folder


@pytest.fixture
def project(grown: Path, tmp_path: Path, tracking_uri: str, monkeypatch) -> Path:
    """A copy of it, in which this process stands and DVC's commands are at hand."""
    shutil.copytree(grown, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(tmp_path / "project")
    for name, value in environment(tracking_uri).items():
        monkeypatch.setenv(name, value)
    return tmp_path / "project"


def environment(tracking_uri: str) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {"PATH": path, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": tracking_uri}


def words(folder: Path, tracking_uri: str, *command: str, expect: int = 0) -> str:
    env = {**os.environ, **environment(tracking_uri)}
    env["PATH"] = warm.first(env["PATH"])
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def cached(path: Path) -> Path:
    """The object of DVC's cache that the file was checked out of."""
    md5 = hashing.file_md5(path)
    return Path(f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}")


def damage(path: Path) -> None:
    """Another byte, in a file that stays read-only."""
    path.chmod(0o644)
    path.write_bytes(b"X" + path.read_bytes()[1:])
    path.chmod(0o444)


def advice(said: str) -> str:
    """The commands that a message ends with."""
    (found,) = re.findall(r"To repair it[^:]*: (.*)$", said, re.MULTILINE)
    return found


@pytest.mark.parametrize("link", ["copy", "hardlink", "symlink"])
def test_a_corrupt_file_of_the_cache_is_not_computed_with_and_the_advice_repairs_it(link, project, tracking_uri):
    right = WEIGHTS.read_bytes()
    words(project, tracking_uri, "dvc", "config", "cache.type", link)
    damage(cached(WEIGHTS))
    shutil.rmtree("data/models/one")
    assert "A  " in words(project, tracking_uri, "dvc", "checkout", "data/models/one")
    assert WEIGHTS.read_bytes() != right, "DVC took it for good"

    said = words(project, tracking_uri, "dvc", "repro", "count", expect=255)

    (line,) = [line for line in said.splitlines() if "DataError" in line]
    assert line.startswith(
        "count: DataError: expected what dvc.lock says, found other bytes in data/models/one (weights) of grow"
    )
    assert "DVC's cache has the same wrong bytes" in line
    assert not Path("data/table.txt").exists()
    words(project, tracking_uri, "bash", "-euc", advice(said))
    assert WEIGHTS.read_bytes() == right
    words(project, tracking_uri, "dvc", "repro", "count")
    assert Path("data/table.txt").read_text() == str(sum(right))
    shutil.rmtree("data/models/one")
    words(project, tracking_uri, "dvc", "checkout", "data/models/one")
    assert WEIGHTS.read_bytes() == right


def test_a_remote_that_has_the_right_bytes_gives_them_back(project, tracking_uri, tmp_path):
    right = WEIGHTS.read_bytes()
    words(project, tracking_uri, "dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    words(project, tracking_uri, "dvc", "push")
    damage(cached(WEIGHTS))
    damage(WEIGHTS)
    Path("grow.py").write_text(GROW.replace("* 500", "* 400"))  # what it would compute now is no concern
    with pytest.raises(DataError) as error:
        integrity.check(hashing.hashes(Path("data/models")), [Path("data/models")])
    assert "--pull takes it from a remote" in str(error.value)
    Path("grow.py").write_text(GROW)
    command = advice(str(error.value)).replace("repro", "repro --pull")
    assert "Pulling data" in words(project, tracking_uri, "bash", "-euc", command)
    assert WEIGHTS.read_bytes() == right


def test_what_was_edited_by_hand_can_be_had_back_or_kept(project, tracking_uri):
    right, known = WEIGHTS.read_bytes(), [Path("data/models")]
    WEIGHTS.write_bytes(b"edited")
    (WEIGHTS.parent / "more").touch()
    said = words(project, tracking_uri, "dvc", "repro", "--single-item", "count", expect=255)
    assert "found other bytes in data/models/one (more, weights) of grow; they were changed after it" in said
    (keep,) = re.findall(r"To keep them as they are instead: (.*)\. To repair", said)
    words(project, tracking_uri, "bash", "-euc", advice(said))
    assert WEIGHTS.read_bytes() == right
    assert not (WEIGHTS.parent / "more").exists()
    WEIGHTS.write_bytes(b"edited")
    words(project, tracking_uri, "bash", "-euc", keep)
    integrity.check(hashing.hashes(*known), known)
    assert WEIGHTS.read_bytes() == b"edited"


def test_a_file_in_the_place_of_a_folder_is_told_by_the_files_that_are_gone(project, tracking_uri):
    gone = sorted(path.name for path in WEIGHTS.parent.iterdir())
    shutil.rmtree(WEIGHTS.parent)
    WEIGHTS.parent.write_text("no folder")
    paths = [Path("data/models")]
    with pytest.raises(DataError, match=re.escape(f"found other bytes in data/models/one ({', '.join(gone)}) of grow")):
        integrity.check(hashing.hashes(*paths), paths)


def test_of_many_corrupt_files_all_are_removed(project, tracking_uri, monkeypatch):
    monkeypatch.setattr(integrity, "NAMED", 1)
    right = {path.name: path.read_bytes() for path in WEIGHTS.parent.iterdir()}
    for path in WEIGHTS.parent.iterdir():
        damage(cached(path))
        damage(path)
    with pytest.raises(DataError, match=r"data/models/one \(config and 1 more\) of grow; DVC's cache has") as error:
        integrity.check(hashing.hashes(WEIGHTS.parent), [WEIGHTS.parent])
    words(project, tracking_uri, "bash", "-euc", advice(str(error.value)))
    assert {path.name: path.read_bytes() for path in WEIGHTS.parent.iterdir()} == right


def test_what_dvc_leaves_out_of_a_folder_is_no_difference(project):
    known = Path("data/models/one")
    (known / ".git").mkdir()
    for name in (".git/HEAD", "note.tmp"):
        (known / name).touch()
    Path(".dvcignore").write_text("*.tmp\n")
    integrity.check(hashing.hashes(known), [known])
    (known / "note").touch()
    with pytest.raises(DataError, match=r"\(note\)"):
        integrity.check(hashing.hashes(known), [known])


def test_what_no_stage_of_now_wrote_is_compared_with_nothing(project, capfd):
    damage(WEIGHTS)
    known, one = hashing.hashes(Path("data/models")), [Path("data/models")]
    for path, text in (("dvc.yaml", "stages: {}\n"), ("dvc.lock", None)):
        before = Path(path).read_text()
        Path(path).write_text(text) if text else Path(path).unlink()
        integrity.check(known, one)
        Path(path).write_text(before)
    assert capfd.readouterr().err == ""
    conflict = r"^A merge conflict stands in dvc\.lock: take a side of it, e\.g\. git checkout --ours -- dvc\.lock"
    for path, text, said in (
        ("dvc.lock", f"<<<<<<< HEAD\n{before}", conflict),
        ("dvc.lock", "[1]\n", "expected stages as DVC has them in dvc.lock"),
        ("dvc.yaml", "stages: [\n", "expected YAML in dvc.yaml"),
        ("params.yaml", "a: [\n", "expected YAML in params.yaml"),
    ):
        kept = Path(path).read_text() if Path(path).exists() else None
        Path(path).write_text(text)
        with pytest.raises(ConfigError, match=said):
            integrity.check(known, one)
        Path(path).unlink() if kept is None else Path(path).write_text(kept)
    integrity.check(hashing.hashes(Path("seed.txt")), [Path("seed.txt")])
    with pytest.raises(DataError):
        integrity.check(known, one)


GUARDED = """
import os, signal, subprocess, sys, time
from pipeline import processes

processes.guard()
server = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE)
server.stdout.readline()
print(server.pid, flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif sys.argv[1] == "left":
    os._exit(130)
"""


@pytest.fixture
def slow(project: Path) -> Path:
    """The project with a stage to run that takes long."""
    Path("slow").touch()
    Path("pid").unlink()
    Path("seed.txt").write_text("another seed")
    return project


@pytest.fixture
def start() -> Iterator:
    """Starts processes in sessions of their own, and ends them all."""
    started: list[psutil.Process] = []

    def begin(*command: str) -> psutil.Process:
        with Path("log").open("w") as log:
            started.append(psutil.Popen(command, stdout=log, stderr=log, start_new_session=True))
        return started[-1]

    yield begin
    pid = Path("pid")
    for process in [*started, *([psutil.Process(int(pid.read_text()))] if running(pid) else [])]:
        if process.is_running():
            process.kill()
    for process in started:
        process.wait()


def running(pid: Path) -> bool:
    """Whether the file names a process that lives."""
    try:
        return psutil.Process(int(pid.read_text())).status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, psutil.NoSuchProcess):
        return False


def status(tracking_uri: str) -> str:
    """How the last run of the stage ended, as MLflow has it."""
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("pruneonce").experiment_id
    found = client.search_runs([experiment], "tags.`pruneonce.stage` = 'grow'", max_results=1)
    return found[0].info.status


@pytest.mark.parametrize("dies", ["dvc", "the shell between"])
def test_a_stage_ends_with_what_started_it(dies, slow, start, tracking_uri):
    Path("dvc.yaml").write_text(
        PIPELINE.replace("python grow.py", "set -e; python grow.py").replace("grow.json\n", "grow.json; echo\n", 1)
    )
    dvc = start("dvc", "repro", "grow")
    wait_for("the stage", lambda: running(Path("pid")), seconds=60, every=0.1, log=Path("log"))
    stage = psutil.Process(int(Path("pid").read_text()))
    shell = stage.parent()
    assert shell.ppid() == dvc.pid
    assert list(Path(".pruneonce/scratch").glob("grow-*.lock"))

    (dvc if dies == "dvc" else shell).kill()

    wait_for("its end", lambda: not running(Path("pid")), seconds=15, every=0.1, log=Path("log"))
    assert "What started this stage has died; the stage ends too." in Path("log").read_text()
    assert status(tracking_uri) == "KILLED"
    assert not list(Path(".pruneonce/scratch").glob("grow-*.lock"))
    assert list(Path(".pruneonce/scratch").glob("grow-*/history.jsonl")), "what a next run goes on from"


def test_a_stage_started_by_hand_stays_when_its_shell_ends(slow, start, monkeypatch):
    monkeypatch.delenv("DVC_STAGE", raising=False)
    shell = start("bash", "-c", "python grow.py --seed seed.txt --model data/other --metrics data/other.json & sleep 0.1")
    shell.wait()
    wait_for("the stage", lambda: running(Path("pid")), seconds=60, every=0.1, log=Path("log"))
    time.sleep(3 * processes.LOOK_SECONDS)
    assert running(Path("pid"))


def test_a_stage_whose_parent_died_before_it_could_look_ends(slow, start, monkeypatch):
    """Importing takes seconds."""
    monkeypatch.setenv("DVC_STAGE", "grow")
    command = "python grow.py --seed seed.txt --model data/other --metrics data/other.json & echo $! > pid"
    start("bash", "-c", f"({command})").wait()
    assert running(Path("pid"))
    wait_for("its end", lambda: not running(Path("pid")), seconds=60, every=0.1, log=Path("log"))
    assert "What started this stage has died" in Path("log").read_text()
    assert not Path("data/other.json").exists()


def test_two_processes_do_not_share_a_scratch_folder(slow, start, tracking_uri):
    command = ["python", "grow.py", "--seed", "seed.txt", "--metrics", "data/other.json", "--model"]
    start(*command, "data/first")
    wait_for("the stage", lambda: running(Path("pid")), seconds=60, every=0.1, log=Path("log"))
    (scratch,) = Path(".pruneonce/scratch").glob("grow-*/")
    before = (scratch / "history.jsonl").read_bytes()
    said = words(slow, tracking_uri, *command, "data/second", expect=1)
    pid = Path("pid").read_text()
    assert re.fullmatch(
        rf"grow: AlreadyRunning: expected no other process that computes grow, found one: process {pid} since [-0-9]+ "
        rf"[:0-9]+, python grow\.py .* --model data/first\. Wait for it, or stop it with kill {pid}\.",
        said.strip(),
    )
    assert (scratch / "history.jsonl").read_bytes() == before
    assert not Path("data/second").exists()


def test_a_lock_is_free_again_and_leaves_nothing(tmp_path):
    lock = tmp_path / "folder/lock"
    for _ in range(2):
        with (
            processes.alone(lock, "run"),
            pytest.raises(AlreadyRunning, match=f"process {os.getpid()}"),
            processes.alone(lock, "run"),
        ):
            pass
        assert list(lock.parent.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"", b"4x", b"\xff"])
def test_who_holds_a_lock_may_be_unknown(tmp_path, content):
    """Its number is written after the lock is taken, and gone before the lock is free."""
    with processes.alone(tmp_path / "lock", "run"):
        (tmp_path / "lock.pid").unlink() if content is None else (tmp_path / "lock.pid").write_bytes(content)
        with pytest.raises(AlreadyRunning) as caught, processes.alone(tmp_path / "lock", "run"):
            pass
    assert str(caught.value) == "expected no other run, found one (process unknown). Wait for it."


@pytest.mark.parametrize("spoil", [Path.touch, lambda folder: (folder / "lock").mkdir(parents=True)])
def test_a_lock_that_cannot_be_written_is_one_line(tmp_path, spoil):
    spoil(tmp_path / "folder")
    said = r"^expected a folder .*/folder to write in, found: .* Make it one, and run again\.$"
    with pytest.raises(PipelineError, match=said), processes.alone(tmp_path / "folder/lock", "run"):
        pytest.fail("it is begun")


@pytest.mark.parametrize("how", ["killed", "left", "well"])
def test_what_a_flow_started_ends_with_it_and_the_watcher_too(how):
    flow = subprocess.Popen([sys.executable, "-c", GUARDED, how], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    server = psutil.Process(int(flow.stdout.readline()))
    mark = server.environ()[processes.FLOW]
    assert flow.wait(timeout=10) == {"killed": -signal.SIGKILL, "left": 130, "well": 0}[how]

    def watchers() -> list[psutil.Process]:
        return [process for process in psutil.process_iter(["cmdline"]) if mark in (process.info["cmdline"] or [])]

    if how == "well":
        assert watchers() == []
        assert server.is_running(), "one that ends well ends its children itself"
        server.kill()
    else:
        psutil.wait_procs([server], timeout=8)
        assert not server.is_running()
        wait_for("the watcher's end", lambda: not watchers(), seconds=5, every=0.1)


def test_rows_that_are_cut_are_a_line_of_the_run(tmp_path, capfd):
    document = tiny.document()
    for section in (document["prepare_task"], document["tasks"][tiny.TASK].get("prepare_task", {})):
        if "max_tokens" in section:
            section["max_tokens"] = 12
    found = {command.name: command for command in tiny.commands(document)}
    for name in ("fetch_local@tiny-bert", f"fetch_local@{tiny.TASK}"):
        tiny.run(found[name], tmp_path, document)
    metrics = tiny.run(found[f"prepare_task@{tiny.TASK}"], tmp_path, document)
    cut, rows = metrics["test"]["cut"], metrics["test"]["rows"]
    assert 0 < cut <= rows
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith(f"{tiny.TASK}: ")]
    assert f"{cut} of {rows} test rows ({100 * cut / rows:.0f} %) longer than max_tokens=12, and cut." in line
    assert line.endswith("raise prepare_task.max_tokens, or that of tasks.topic.")
