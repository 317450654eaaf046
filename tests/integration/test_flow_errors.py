"""What is wrong outside of a stage, in DVC, git, Prefect or on the disk, is one line of the flow that says what to do."""

import contextlib
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from dvc.repo import Repo
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_SERVER_DATABASE_CONNECTION_URL, temporary_settings

from flows import compress, keeping, order, repro, trouble
from pipeline import hashing
from pipeline.lineage import why
from pruneonce.errors import AlreadyRunning, DataError, PipelineError, PruneOnceError
from tests.conftest import commit, wait_for

PIPELINE = """
stages:
  grow:
    cmd: mkdir model && cat seed > model/weights && echo >> ran && test -z "$PRUNEONCE_RAN" || touch "$PRUNEONCE_RAN"
    deps: [seed]
    outs: [model]
  count:
    cmd: wc -c < model/weights > count
    deps: [model]
    outs: [count]
"""
CONFLICT = "<<<<<<< HEAD\na: 1\n=======\na: 2\n>>>>>>> other\n"
MODEL = Path("model/weights")


def dvc(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *words], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A repository of two stages that have run."""
    folder = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(folder)
    try:
        Path("dvc.yaml").write_text(PIPELINE)
        Path("seed").write_bytes(os.urandom(100_000))
        commit(folder)
        dvc("init", "--quiet")
        dvc("repro", "--quiet")
        commit(folder, "-A")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch) -> Path:
    shutil.copytree(made, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def begin() -> list[str]:
    """What the flow asks of DVC before its first stage."""
    stages = order.in_order(order.COMPRESS)
    order.pending(stages)
    return stages


def bring(stage: str) -> repro.Outcome:
    """The stage's task, without Prefect."""
    with disable_run_logger():
        return repro.repro.fn(stage)


def add(name: str, text: str) -> Callable[[], object]:
    return lambda: Path(name).write_text((Path(name).read_text() if Path(name).exists() else "") + text)


def write(name: str, text: str) -> Callable[[], object]:
    return lambda: Path(name).write_text(text)


def folder_for(name: str) -> Callable[[], object]:
    """A file that cannot be read, for root either."""
    return lambda: (Path(name).unlink(), Path(name).mkdir())


# how the folder is damaged, what was found, what to do
DAMAGE = {
    "a conflict in dvc.lock": (add("dvc.lock", CONFLICT), "'dvc.lock', YAML file", "git checkout --ours -- dvc.lock"),
    "a conflict in dvc.yaml": (add("dvc.yaml", CONFLICT), "'dvc.yaml', YAML file", "git checkout --ours -- dvc.yaml"),
    "a newer dvc.lock": (write("dvc.lock", "schema: '3.0'\nstages: {}\n"), "invalid schema version", "git checkout -- FILE"),
    "another dvc.lock": (write("dvc.lock", "[1]\n"), "'./dvc.lock' validation failed: expected a dictionary", "git diff"),
    "a dvc.lock that cannot be read": (folder_for("dvc.lock"), "dvc.lock", "git checkout -- FILE"),
    "no dvc.yaml": (Path("dvc.yaml").unlink, "found none", "git checkout -- dvc.yaml"),
    "a broken configuration": (write(".dvc/config", "[core\n"), "config file error: ", "git checkout -- FILE"),
    "an unknown setting": (
        write(".dvc/config", "[core]\nx = 1\n"),
        "extra keys not allowed @ data['core']['x']",
        "git diff",
    ),
    "a broken rwlock": (write(".dvc/tmp/rwlock", "{x"), "JSON structure is corrupted", "rm .dvc/tmp/rwlock"),
    "another rwlock": (write(".dvc/tmp/rwlock", "[]"), "format error", "rm .dvc/tmp/rwlock"),
    "no .dvc": (lambda: shutil.rmtree(".dvc"), "not inside of a DVC repository", "git checkout -- .dvc"),
    "no .git": (lambda: shutil.rmtree(".git"), "is not a git repository", "run again"),
    "a circle": (
        write("dvc.yaml", "stages: {a: {cmd: x, deps: [b], outs: [b]}}\n"),
        "a dependency and an output",
        "git diff",
    ),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_what_dvc_cannot_read_is_one_line_that_says_what_to_do(how, project):
    damage, found, do = DAMAGE[how]
    assert begin() == ["grow", "count"]
    damage()
    with pytest.raises(PipelineError) as error:
        begin() and bring("grow")
    assert found in str(error.value)
    assert do in str(error.value)
    assert str(error.value).startswith("expected ")


def test_what_git_is_at_does_not_matter(project):
    Path(".git/index.lock").touch()
    assert begin() == ["grow", "count"]


@pytest.fixture
def busy(project):
    """`dvc repro` at work on a stage."""
    Path("dvc.yaml").write_text(PIPELINE.replace("mkdir model", "touch started && sleep 60 && mkdir model"))
    with subprocess.Popen([sys.executable, "-m", "dvc", "repro", "grow"], stdout=subprocess.DEVNULL) as other:
        wait_for("the stage", Path("started").exists, seconds=60, every=0.1)
        yield other
        for child in psutil.Process(other.pid).children(recursive=True):
            child.terminate()


def test_a_command_of_dvc_at_work_in_the_same_folder_is_named(busy):
    with pytest.raises(AlreadyRunning, match=rf"found: '.*model' is busy, .*\(PID {busy.pid}\): .* repro grow "):
        bring("grow")


def test_dvcs_lock_held_is_one_line(project):
    Path("seed").write_text("another")
    hold = "import time; from dvc.repo import Repo; held = Repo().lock.__enter__(); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", f"{hold}  # dvc"], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(AlreadyRunning) as error:
            bring("grow")
        other.kill()
    said = f"found: one that holds .dvc/tmp/lock, process {other.pid} since "
    assert said in str(error.value)


def test_any_error_of_the_file_system_is_one_line():
    denied = r"expected a thing, found: \[Errno 13\] Permission denied: 'x'\. Correct it"
    with pytest.raises(PipelineError, match=denied), trouble.plainly("a thing"):
        raise PermissionError(13, "Permission denied", "x")
    full = r"No space left on device\. Free some space, and run again\."
    with pytest.raises(PipelineError, match=full), trouble.plainly("a thing"):
        raise OSError(28, "No space left on device")
    with pytest.raises(ZeroDivisionError), trouble.plainly("a fault of ours keeps its traceback"):
        _ = 1 / 0


@pytest.fixture
def full(project, tmp_path):
    """DVC's cache on a disk on which 20 kB are left. Gives the file that fills it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=240k", "tmpfs", str(disk)]).returncode:
        pytest.skip("expected to mount a disk of our own: root's alone")
    try:
        dvc("config", "--local", "cache.dir", str(disk / "cache"))
        (disk / "cache").mkdir()
        Path("seed").write_bytes(os.urandom(100_000))
        (disk / "fill").write_bytes(bytes(200_000))
        yield disk / "fill"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_cache_fails_the_stage_and_what_it_computed_is_stored_by_the_next_run(full):
    with pytest.raises(PruneOnceError) as error:
        bring("grow")
    assert type(error.value).__name__ == "StageFailed"
    assert str(error.value).startswith("expected model of grow in DVC's cache, ")
    assert "No space left on device" in str(error.value)
    assert MODEL.read_bytes() == Path("seed").read_bytes()
    with pytest.raises(PruneOnceError, match="Is the disk full"):
        bring("grow")
    full.unlink()
    ran = Path("ran").read_text()
    outcome = bring("grow")
    assert (outcome.result, outcome.why) == ("unchanged", "now in DVC's cache too")
    assert bring("grow").why == "as in dvc.lock"
    assert Path("ran").read_text() == ran, "it was not computed again"
    shutil.rmtree("model")
    assert bring("grow").result == "restored from cache"
    assert MODEL.read_bytes() == Path("seed").read_bytes()


def test_what_dvc_could_not_record_for_want_of_space_is_kept_by_the_advice(full):
    with suppress(OSError), full.open("ab", buffering=0) as file:  # until nothing is left
        while file.write(bytes(4096)):
            pass
    with pytest.raises(PruneOnceError, match=r"which ran to its end, found: .*No space left on device") as error:
        bring("grow")
    full.unlink()
    ran = Path("ran").read_text()
    (command,) = re.findall(r"Correct that, then dvc (.*), and run again", str(error.value))
    dvc(*command.split())
    assert bring("grow").result == "unchanged"
    assert Path("ran").read_text() == ran, "it was not computed again"


def cached() -> Path:
    """The object of DVC's cache that the weights were checked out of."""
    md5 = hashing.file_md5(MODEL)
    return Path(f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}")


def damage(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"X" + path.read_bytes()[1:])
    path.chmod(0o444)


def test_what_is_restored_from_a_corrupt_cache_is_an_error(project):
    damage(cached())
    shutil.rmtree("model")
    Path("params.yaml").touch()
    right = Path("seed").read_bytes()
    for _ in range(2):
        with pytest.raises(DataError, match=r"found other bytes in model \(weights\) of grow; DVC's cache has") as error:
            bring("grow")
    remove, _, again = str(error.value).rpartition("To repair it: ")[2].rpartition(" && dvc ")
    subprocess.run(["bash", "-euc", remove], check=True)
    dvc(*again.split())
    assert MODEL.read_bytes() == right
    assert bring("grow").result == "unchanged"


def test_wrong_bytes_are_not_stored_for_want_of_the_right_ones(project):
    """Where of a corrupt out the object was removed and the workspace's copy was not."""
    right, path = MODEL.read_bytes(), cached()
    Path("params.yaml").touch()
    damage(path)
    shutil.rmtree("model")
    dvc("checkout", "model")
    path.unlink()
    assert bring("grow").result == "ran"
    assert MODEL.read_bytes() == path.read_bytes() == right


@pytest.mark.parametrize("listens", [False, True])
def test_a_prefect_server_that_does_not_answer_is_known_in_seconds(listens, monkeypatch):
    monkeypatch.setattr(trouble, "ANSWER_SECONDS", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        port, began = silent.getsockname()[1], time.monotonic()
        url = f"http://me:s3cret@127.0.0.1:{port}/api"
        with temporary_settings({PREFECT_API_URL: url}), pytest.raises(PipelineError) as error:
            trouble.check_prefect()
    assert time.monotonic() - began < 10
    said = str(error.value)
    assert said.startswith(
        f"expected a Prefect server at http://127.0.0.1:{port}/api, found: Connect" if not listens else "expected"
    )
    assert f"//127.0.0.1:{port}/api" in said
    assert "s3cret" not in said
    assert "unset PREFECT_API_URL" in said


def test_without_a_server_prefects_home_is_made(tmp_path):
    with temporary_settings({PREFECT_HOME: tmp_path / "a/b", PREFECT_API_URL: None}):
        trouble.check_prefect()
    assert (tmp_path / "a/b").is_dir()
    (tmp_path / "file").touch()
    below_a_file = temporary_settings({PREFECT_HOME: tmp_path / "file/b", PREFECT_API_URL: None})
    with below_a_file, pytest.raises(PipelineError, match=r"expected the folder PREFECT_HOME=.*file/b, found: "):
        trouble.check_prefect()


def base_in(home: Path) -> contextlib.AbstractContextManager[object]:
    """Prefect's settings as PREFECT_HOME in the environment makes them."""
    base = f"sqlite+aiosqlite:///{home}/prefect.db"
    return temporary_settings({PREFECT_HOME: home, PREFECT_API_URL: None, PREFECT_SERVER_DATABASE_CONNECTION_URL: base})


def damaged(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as base, base:
        base.execute("CREATE TABLE runs (id INTEGER)")
    content = bytearray(file.read_bytes())
    content[100:4000] = b"\xff" * 3900
    file.write_bytes(content)


@pytest.mark.parametrize("spoil", [lambda file: file.write_text("no database " * 99), damaged, Path.mkdir])
def test_prefects_database_is_looked_at_first(spoil, tmp_path):
    spoil(tmp_path / "prefect.db")
    with (
        base_in(tmp_path),
        pytest.raises(PipelineError, match=r"^expected Prefect's database in .*prefect\.db, found: .* move it away"),
    ):
        trouble.check_prefect()


def test_prefects_database_is_left_as_it_is(tmp_path):
    file = tmp_path / "prefect.db"
    with base_in(tmp_path):
        trouble.check_prefect()
        assert not file.exists()
        file.touch()  # as a server that is killed leaves it
        trouble.check_prefect()
        with contextlib.closing(sqlite3.connect(file)) as base:
            base.execute("CREATE TABLE runs (id INTEGER)")
            base.execute("BEGIN EXCLUSIVE")
            trouble.check_prefect()  # another flow's server holds it


def test_what_prefect_says_without_a_server_is_known():
    said = (
        "Timed out while attempting to connect to ephemeral Prefect API server. Ephemeral server process exited with code 1."
    )
    assert trouble.no_server(RuntimeError(said))
    assert not trouble.no_server(RuntimeError("a fault of ours"))
    assert said in str(trouble.unreachable(RuntimeError(said)))


def test_the_closing_lines_say_what_git_does_not_have(project):
    assert compress.to_commit() == []
    Path("dvc.lock").write_text("changed")
    Path("data/report").mkdir(parents=True)
    Path("data/report/report.md").touch()
    Path("study").mkdir()
    assert compress.to_commit()[1:] == ["  git add dvc.lock data && git commit -m 'a run'"]
    subprocess.run(["bash", "-c", "git config user.name t; git config user.email t@example.org"], check=True)
    subprocess.run(["bash", "-euc", compress.to_commit()[1]], check=True, capture_output=True)
    assert compress.to_commit() == []


def test_a_first_run_reads_as_a_start(project):
    with Repo() as repo:
        status = repo.status(targets=["grow"], with_deps=False)
    assert status == {}
    Path("dvc.lock").unlink()
    with Repo() as repo:
        changes = repo.status(targets=["grow"], with_deps=False)["grow"]
    assert repro.reasons("grow", changes) == ["its first run: it has no entry in dvc.lock"]
    assert not keeping._not_in_cache(changes[0])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (PIPELINE.replace("cmd: wc", "cmd:\n      - wc"), ["its command in dvc.yaml changed"]),
        (PIPELINE.replace("[count]", "[count]\n    params:\n      - my.yaml:"), ["code my.yaml is a new dep"]),
        (f"vars: [my.yaml]\n{PIPELINE.replace('wc -c', 'wc -c${rate}')}", ["command changed command"]),
    ],
    ids=["a list of commands", "a whole file of parameters", "variables of its own"],
)
def test_any_syntax_that_dvc_takes_starts_a_stage(project, changed, said):
    Path("my.yaml").write_text("rate: 3\n")
    Path("dvc.yaml").write_text(changed)
    with Repo() as repo:
        changes = repo.status(targets=["count"], with_deps=False)["count"]
    assert repro.reasons("count", changes) == said


def test_why_reads_lists_of_commands_and_whole_files_of_parameters(project):
    Path("my.yaml").write_text("rate: 3\n")
    listed = PIPELINE.replace("cmd: wc", "cmd:\n      - touch more\n      - wc")
    Path("dvc.yaml").write_text(listed.replace("[count]", "[count]\n    params:\n      - my.yaml:"))
    assert why.of("count").words == ["its command in dvc.yaml changed", "parameter rate is new: 3"]
    dvc("repro", "--quiet")
    assert why.reasons() == {}
    Path("my.yaml").write_text("rate: 4\n")
    assert why.of("count").words == ["parameter rate: 3 -> 4"]


STUDY = """
stages:
  study_count:
    matrix: {unit: [c, w]}
    cmd: cd .. && mkdir -p study/data && wc -${item.unit} < model/weights > study/data/${item.unit} && touch "$PRUNEONCE_RAN"
    deps: [../model]
    outs: ["data/${item.unit}"]
"""


@pytest.fixture
def with_study(project: Path) -> Path:
    """The project, with a DVC project of its own inside that reads what the first one wrote."""
    Path("study").mkdir()
    dvc("--cd", "study", "init", "--quiet", "--subdir")
    Path("study/dvc.yaml").write_text(STUDY)
    return project


def test_a_stage_of_the_study_is_run_recorded_and_restored(with_study):
    stage = "study/dvc.yaml:study_count@c"
    assert bring(stage).result == "ran"
    assert "study_count@c" in Path("study/dvc.lock").read_text()
    assert bring(stage).result == "unchanged"
    assert Path.cwd() == with_study
    shutil.rmtree("study/data")
    assert bring(stage).result == "restored from cache"
    assert Path("study/data/c").is_file()
    Path("study/dvc.lock").unlink()
    shutil.rmtree("study/data")
    assert bring(stage).result == "restored from cache", "DVC's run cache has it"


def test_outs_of_the_study_that_the_cache_lost_are_stored_again(with_study):
    stage = "study/dvc.yaml:study_count@c"
    bring(stage)
    shutil.rmtree("study/.dvc/cache/files")
    assert bring(stage) == repro.Outcome(stage, "unchanged", "now in DVC's cache too", pytest.approx(0, abs=60))
    assert len([path for path in Path("study/.dvc/cache/files").rglob("*") if path.is_file()]) == 1
