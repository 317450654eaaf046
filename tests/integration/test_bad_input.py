"""Everything a user can get wrong or meet: one clear message, a non-zero exit, and what was computed before is kept."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from pipeline import stage
from pipeline.history import Log
from pipeline.params import profiles
from pipeline.params.document import load, parse
from pipeline.params.reading import read_yaml
from pipeline.tracking import open_run, runs, store, unsent
from pruneonce.errors import ConfigError, LossNotFinite, TrackerUnreachable
from tests.integration import tiny
from tests.integration.conftest import Project, new_project
from tests.integration.tiny import TASK

Document = dict[str, Any]


def put(path: str, value: Any) -> Callable[[Document], None]:
    """A change of params.yaml: put("sparsify.sparsity", 1.5)."""

    def change(document: Document) -> None:
        *sections, key = path.split(".")
        for name in sections:
            document = document[name]
        document[key] = value

    return change


def drop(path: str) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        *sections, key = path.split(".")
        for name in sections:
            document = document[name]
        del document[key]

    return change


RECIPE = f"in finetune with tasks.{TASK}.finetune: "
BAD_PARAMS = {
    "unknown key": (put("sparsify.sparsty", 0.9), "sparsify.sparsty: Extra inputs are not permitted, found 0.9"),
    "unknown section": (put("prune", {}), "prune: Extra inputs are not permitted"),
    "missing key": (drop("sparsify.steps"), "sparsify.steps: Field required"),
    "missing section": (drop("quantize"), "quantize: Field required"),
    "empty section": (put("sparsify", None), "sparsify: Input should be a valid dictionary"),
    "out of range": (put("sparsify.sparsity", 1.5), "sparsify.sparsity: Input should be less than 1, found 1.5"),
    "below range": (
        put("prepare_teacher.learning_rate", 0.0),
        "prepare_teacher.learning_rate: Input should be greater than 0",
    ),
    "infinite": (put("sparsify.learning_rate", float("inf")), "sparsify.learning_rate: Input should be a finite number"),
    "wrong type": (put("sparsify.steps", "40"), "sparsify.steps: Input should be a valid integer, found '40'"),
    "fraction of a step": (put("sparsify.steps", 40.5), "sparsify.steps: Input should be a valid integer, found 40.5"),
    "yes for a number": (put("common.seed", True), "common.seed: Input should be a valid integer, found True"),
    "no such choice": (
        put("sparsify.criterion", "random"),
        "sparsify.criterion: Input should be 'magnitude', 'movement', 'second_order' or 'least_squares'",
    ),
    "end after freeze": (
        put("sparsify.prune_end_steps", 30),
        "prune_begin_steps <= prune_end_steps <= freeze_masks_steps < steps",
    ),
    "begin after end": (put("sparsify.prune_begin_steps", 25), "prune_begin_steps <= prune_end_steps"),
    "freeze after the last step": (put("sparsify.freeze_masks_steps", 40), "freeze_masks_steps < steps"),
    "falling sparsity": (put("sparsify.initial_sparsity", 0.9), "need initial_sparsity <= sparsity, found 0.9 and 0.85"),
    "no loss": (put("sparsify.distillation.hidden_weight", 0.0), None),  # hard_weight is left: valid
    "endless warm-up": (put("prepare_teacher.warmup_steps", 60), "need warmup_steps < steps, found 60 and 60"),
    "uneven micro-batches": (put("sparsify.micro_batches", 3), "batch_size 8 must be a multiple of micro_batches 3"),
    "no regular expression": (put("sparsify.prunable", "("), "sparsify.prunable: not a regular expression"),
    "unknown model": (
        put("common.model", "gpt"),
        "common.model names source 'gpt', found sources ['corpus', 'tiny-bert', 'topic']",
    ),
    "unknown source of a task": (
        put(f"tasks.{TASK}.prepare_task.source", "topics"),
        f"tasks.{TASK}.prepare_task.source names source 'topics'",
    ),
    "unknown source of the corpus": (
        lambda d: d["prepare_corpus"]["documents"][0].update(source="books"),
        "prepare_corpus.documents[0].source names source 'books'",
    ),
    "one name for two sources": (
        lambda d: d["fetch"].update(topic={"package": "a==1", "sha256": "0" * 64, "members": {"a": "b"}}),
        "source names stand in fetch and in fetch_local: ['topic']",
    ),
    "a package without its version": (
        lambda d: d["fetch"].update(x={"package": "a", "sha256": "0" * 64, "members": {"a": "b"}}),
        "fetch.x.package.package: String should match pattern",
    ),
    "a task without a section": (
        drop(f"tasks.{TASK}.quantize"),
        f"tasks.{TASK} needs exactly the keys ['finetune', 'prepare_task'",
    ),
    "a task with an empty section": (
        put(f"tasks.{TASK}.finetune", None),
        f"tasks.{TASK}.finetune: Input should be a valid dict",
    ),
    "a task with an unknown key": (
        put(f"tasks.{TASK}.finetune", {"epoch": 3}),
        f"{RECIPE}epoch: Extra inputs are not permitted",
    ),
    "a task out of range": (
        put(f"tasks.{TASK}.finetune", {"distillation": {"soft_weight": -1.0}}),
        f"{RECIPE}distillation.soft_weight: Input should be greater than or equal to 0",
    ),
    "a recipe out of range": (
        put("finetune.distillation.soft_weight", -1.0),
        f"{RECIPE}distillation.soft_weight: Input should be greater than or equal to 0",
    ),
    "no tasks": (put("tasks", {}), "tasks: Dictionary should have at least 1 item"),
    "a task that is a path": (lambda d: d["tasks"].update({"../x": d["tasks"][TASK]}), "tasks.../x"),
}


@pytest.mark.parametrize("case", BAD_PARAMS)
def test_params_that_are_not_valid(case):
    document = tiny.document()
    change, message = BAD_PARAMS[case]
    parse(document, "params.yaml")
    change(document)
    if message is None:
        parse(document, "params.yaml")
        return
    with pytest.raises(ConfigError) as caught:
        parse(document, "params.yaml")
    assert str(caught.value).startswith("params.yaml is not valid. ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_told_at_once():
    document = tiny.document()
    put("sparsify.sparsity", 1.5)(document)
    drop("evaluate.threads")(document)
    with pytest.raises(ConfigError, match=r"sparsify\.sparsity: .*; evaluate\.threads: Field required"):
        parse(document, "params.yaml")
    assert len(BAD_PARAMS) == 32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "expected YAML in .*, line 1"),
        (b"a: 1\na: 2\n", r"every key once in .*params\.yaml, found a twice, in lines 1 and 2"),
        (b"a: \xff\n", "expected a file in UTF-8, found one that cannot be read .*codec"),
        (b"a: !!python/object:os.system x\n", "expected values without a tag in .*, found .*os.system in line 1"),
        (b"- 1\n", "Input should be a valid dictionary"),
        (b"", "Input should be a valid dictionary"),
        (None, "expected the file .*, found none"),
    ],
)
def test_a_file_that_is_not_params(tmp_path, content, message):
    if content is not None:
        (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


def test_numbers_are_read_as_dvc_reads_them(tmp_path):
    (tmp_path / "a.yaml").write_text("rate: 1e-4\n")
    assert read_yaml(tmp_path / "a.yaml") == {"rate": 1e-4}


def failed(done: subprocess.CompletedProcess[str], message: str, *, code: int = 1) -> None:
    """The command ended with `code` and the message, on one line, and no traceback was shown."""
    assert done.returncode == code, done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if message in line]
    assert len(lines) == 1, done.stderr[-3000:]
    assert done.stderr.endswith(f"{lines[0]}\n") or "step/s" in done.stderr, "nothing but a progress bar comes after it"


def newest_run(tracking_uri: str) -> Run:
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name(store.EXPERIMENT)
    return client.search_runs([experiment.experiment_id], order_by=["start_time DESC"], max_results=1)[0]


def columns(project: Project) -> None:
    project.edit(put(f"tasks.{TASK}.prepare_task.text", "body"))


def labels(project: Project) -> None:
    project.edit(put(f"tasks.{TASK}.prepare_task.labels", ["kitchen", "sport"]))


def too_long(project: Project) -> None:
    project.edit(put(f"tasks.{TASK}.prepare_task.max_tokens", 1000))


def too_wide(project: Project) -> None:
    project.edit(put("prepare_corpus.block_tokens", 65))


def empty(project: Project) -> None:
    (project.folder / "data/raw/topic/train.tsv").write_bytes(b"")


def latin1(project: Project) -> None:
    with (project.folder / "data/raw/topic/train.tsv").open("ab") as file:
        file.write("ein S\u00fcppchen\tkitchen\n".encode("latin1"))


def no_train(project: Project) -> None:
    (project.folder / "data/raw/topic/train.tsv").rename(project.folder / "data/raw/topic/training.tsv")


def checksum(project: Project) -> None:
    project.edit(put("fetch_local.corpus.sha256", "0" * 64))


def gone(project: Project) -> None:
    (project.folder / "tests/tiny/text/corpus.txt").rename(project.folder / "tests/tiny/text/corpora.txt")


def layers(project: Project) -> None:
    project.edit(put("sparsify.prunable", r"^decoder\."))


def diverging(project: Project) -> None:
    project.edit(put("prepare_teacher.learning_rate", 1e30))


def invalid(project: Project) -> None:
    (project.folder / "params.yaml").write_text("common: [")


BAD_RUNS = {
    columns: (f"prepare_task@{TASK}", "prepare_task: DataError: expected column 'body' in data/raw/topic/train.tsv"),
    labels: (f"prepare_task@{TASK}", "DataError: expected labels ['kitchen', 'sport'], found also ['weather']"),
    too_long: (
        f"prepare_task@{TASK}",
        "ConfigError: expected rows of at most 64 tokens, the positions of the model in data/raw/tiny-bert, found 1000: ",
    ),
    too_wide: (
        "prepare_corpus",
        "ConfigError: expected rows of at most 64 tokens, the positions of the model in data/raw/tiny-bert, found 65: ",
    ),
    empty: (f"prepare_task@{TASK}", "DataError: expected rows in data/raw/topic/train.tsv, found an empty file"),
    latin1: (f"prepare_task@{TASK}", "DataError: expected UTF-8 in data/raw/topic/train.tsv, found byte 0xfc"),
    no_train: (
        f"prepare_task@{TASK}",
        "DataError: expected a file train.* in source 'topic', found ['test.tsv', 'training.tsv']",
    ),
    checksum: ("fetch_local@corpus", f"fetch_local: ChecksumMismatch: expected sha256 {'0' * 64} for corpus.txt, found "),
    layers: ("sparsify", "sparsify: ModelError: expected nn.Linear layers whose name matches '^decoder\\\\.', found none"),
    diverging: ("prepare_teacher", "prepare_teacher: LossNotFinite: expected a finite loss, found loss "),
    invalid: ("report", "report: ConfigError: expected YAML in params.yaml, found: "),
}
IN_PROCESS = {
    labels,
    too_long,
    too_wide,
    empty,
    latin1,
    no_train,
    layers,
    diverging,
}  # through the same `main`, but without waiting for imports
AS_USERS_DO = {columns, checksum}


def cold(command: list[str]) -> list[str]:
    """A command of `Project.command` as it starts for users."""
    return [sys.executable, *command[1:]]


@pytest.mark.parametrize("spoil", BAD_RUNS, ids=lambda spoil: spoil.__name__)
def test_a_stage_that_cannot_go_on(computed, tracking_uri, spoil):
    name, message = BAD_RUNS[spoil]
    spoil(computed)
    command = next(c for c in tiny.commands(tiny.document()) if c.name == name)
    before = computed.snapshot()
    words = cold(computed.command(name)) if spoil in AS_USERS_DO else computed.command(name)
    failed(computed.main(name) if spoil in IN_PROCESS else computed.run(*words), message)
    if spoil is checksum:  # through the command line, on a real store
        run = newest_run(tracking_uri)
        assert (run.info.run_name, run.info.status) == (name, "FAILED")
    own = tuple(path for flag, path in command.flags.items() if flag in ("source", "splits", "model", "history"))
    kept = {path: content for path, content in before.items() if not path.startswith(own)}
    after = computed.snapshot()
    assert {path: after.get(path) for path in kept} == kept
    assert command.flags["metrics"] in kept, "the metrics of a stage that failed are not written"
    assert len(kept) > 40


def test_a_local_source_that_is_not_there(project):
    gone(project)
    done = project.main("fetch_local@corpus")
    failed(done, "fetch_local: SourceError: expected a file or folder at tests/tiny/text/corpus.txt, found none. Set `path`")


def test_no_package_index(project):
    source = {"package": "no-such-package-here==1.0", "sha256": "0" * 64, "members": {".": "model"}}
    project.edit(lambda d: d["fetch"].update(ghost=source))
    command = [
        "python",
        "-m",
        "stages.fetch",
        "--item",
        "ghost",
        "--source",
        "data/raw/ghost",
        "--metrics",
        "data/m.json",
    ]
    done = project.run(*command, PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull)
    failed(done, "fetch: SourceError: expected no-such-package-here==1.0 from the package index, found: ")
    assert not (project.folder / "data/raw/ghost").exists()
    assert not (project.folder / "data/m.json").exists()


def test_a_tracking_server_that_does_not_answer(computed):
    before, began = computed.snapshot(), time.monotonic()
    done = computed.run(*computed.command("prepare_teacher"), MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    failed(done, "prepare_teacher: TrackerUnreachable: expected an MLflow tracking store at http://127.0.0.1:9, found: ")
    assert "Nothing was started" in done.stderr
    assert "step/s" not in done.stderr
    assert time.monotonic() - began < 60
    assert computed.snapshot() == before


def test_asking_an_unreachable_tracker_takes_seconds(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(TrackerUnreachable):
        store.connect()
    assert time.monotonic() - began < 30


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("name", "flag"),
    [("prepare_corpus", "--tokens"), ("prepare_teacher", "--model-folder"), ("fetch_local@corpus", "--source")],
)
def test_a_full_disk(computed, small_disk, name, flag):
    (small_disk / "ballast").write_bytes(b"x" * 60_000)
    computed.edit(put("prepare_teacher.steps", 10))
    command = computed.command(name)
    command[command.index(flag) + 1] = str(small_disk / "out")
    before = computed.snapshot()
    done = computed.run(*command)
    full = (
        "SourceError: expected room for the" if name.startswith("fetch") else "the disk is full ("
    )  # asked before it writes
    failed(done, f"{name.partition('@')[0]}: {full}")
    assert "free some space and run again" in done.stderr
    kept = {path: content for path, content in before.items() if not path.endswith(".csv")}
    after = computed.snapshot()
    assert {path: after.get(path) for path in kept} == kept


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "the disk is full ([Errno 28] No space left on device)"),
        (OSError(122, "Disk quota exceeded"), "the disk is full ("),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk is full ("),
    ],
)
def test_errors_that_say_the_disk_is_full(monkeypatch, error, message):
    def raising(*_: object) -> None:
        raise error

    monkeypatch.setattr(stage, "_main", raising)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as caught:
        stage.main(raising)
    assert message in str(caught.value.code)


@pytest.mark.parametrize("error", [OSError(13, "Permission denied"), ZeroDivisionError("a defect")])
def test_a_defect_is_not_dressed_up(monkeypatch, error):
    def raising(*_: object) -> None:
        raise error

    monkeypatch.setattr(stage, "_main", raising)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(type(error)):
        stage.main(raising)


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(signal.SIGINT, 130, "stopped by Ctrl-C. Finished stages are kept"), (signal.SIGTERM, 143, "")],
)
def test_a_stage_that_is_stopped(computed, tracking_uri, number, code, message):
    computed.edit(put("prepare_teacher.steps", 100_000))
    before, log = computed.snapshot(), computed.folder / "log"
    with log.open("w") as err:
        started = subprocess.Popen(
            cold(computed.command("prepare_teacher")),
            cwd=computed.folder,
            env=computed.environment,
            stderr=err,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
        )
        try:
            until = time.monotonic() + 90
            while "step/s, " not in log.read_text() and time.monotonic() < until and started.poll() is None:
                time.sleep(0.1)
            started.send_signal(number)
            assert started.wait(timeout=30) == code, log.read_text()[-3000:]
        finally:
            started.kill()
    assert "Traceback" not in log.read_text()
    assert message in log.read_text()
    assert computed.snapshot() == before
    run = newest_run(tracking_uri)
    assert (run.info.run_name, run.info.status) == ("prepare_teacher", "KILLED")
    assert run.data.params["prepare_teacher.steps"] == "100000"


def test_of_two_that_make_the_experiment_at_once_both_have_it(tmp_path, monkeypatch):
    """The second one's look came before the first one's making, on a real store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    _, made = store.connect()
    look, looks = MlflowClient.get_experiment_by_name, iter([lambda *_: None])
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", lambda *words: next(looks, look)(*words))
    assert store.connect()[1] == made
    assert next(looks, None) is None, "the early look was taken"


class Deaf:
    """An MLflow client whose server is lost after `answers` requests, until `back` are asked; one in vain takes a minute."""

    def __init__(self, answers: int, back: int = sys.maxsize):
        self.answers, self.back, self.asked, self.seconds = answers, back, 0, 0.0
        self.metrics: list[Metric] = []
        self.status = ""

    def _ask(self) -> None:
        self.asked += 1
        if self.answers < self.asked <= self.back:
            self.seconds += 60.0
            raise ConnectionError("gone")

    def create_run(self, *_: object, **__: object):
        self._ask()
        return type("Run", (), {"info": type("Info", (), {"run_id": "r"})})

    def log_batch(self, run_id: str, metrics=(), params=(), tags=()) -> None:
        self._ask()
        self.metrics += metrics

    def search_runs(self, *_: object) -> list[object]:
        return []  # of other runs; nothing is counted

    def set_terminated(self, run_id: str, status: str, end_time: int | None = None) -> None:
        self._ask()
        self.status = status

    def get_run(self, run_id: str) -> SimpleNamespace:
        data = SimpleNamespace(metrics={m.key: m.value for m in self.metrics}, tags={})
        return SimpleNamespace(data=data, info=SimpleNamespace(run_name="sparsify"))

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        return [m for m in self.metrics if m.key == key]


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """Where is kept what a server did not take."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / ".pruneonce/unsent"


def train_an_hour(client: Deaf, monkeypatch) -> None:
    """A run of 3600 steps of one second each, by a clock of ours, on this client."""
    monkeypatch.setattr(store, "connect", lambda: (client, "0"))
    monkeypatch.setattr(open_run, "time", SimpleNamespace(monotonic=lambda: client.seconds, time=time.time))
    with runs.stage_run("sparsify", {"sparsify.steps": 3600}, {"data/x": "md5"}) as tracked:
        for step in range(3600):
            client.seconds += 1.0
            tracked.log_step(step, {"loss": 1.0})
        tracked.log_numbers("result", {"held_out_loss": 2.0, "names": ["not a number"], "seconds": 1.0})


def test_a_tracker_lost_in_training_is_told_once_and_does_not_slow_it(kept, monkeypatch, capsys):
    client = Deaf(answers=3)  # create_run, params, the first flush
    train_an_hour(client, monkeypatch)
    assert client.asked == 3 + 3 + 1, "three tries in an hour, one at the end"
    assert [(m.key, m.step) for m in client.metrics] == [("loss", step) for step in range(6)]
    said = capsys.readouterr().err
    assert said.count("no longer answers (ConnectionError); the stage goes on") == 1
    client.answers = sys.maxsize
    (said,) = unsent.send(client)
    assert said.endswith("has now all of sparsify (run r): 3596 metrics that were kept were sent.")
    assert_all_sent(client)
    assert list(kept.glob("*")) == [kept / unsent.LOCK]


def assert_all_sent(client: Deaf) -> None:
    assert [m.step for m in client.metrics if m.key == "loss"] == list(range(3600)), "every step, once, in order"
    assert [m.key for m in client.metrics[3600:]] == ["result.held_out_loss", "result.seconds"]
    assert client.status == "FINISHED"


def test_what_a_lost_tracker_did_not_take_is_sent_when_it_answers_again(kept, monkeypatch):
    client = Deaf(answers=3, back=5)
    train_an_hour(client, monkeypatch)
    assert_all_sent(client)
    assert not list(kept.glob("*")), "nothing is kept that was sent"


def test_what_a_tracker_refuses_is_dropped_and_holds_nothing_up(kept, monkeypatch, capsys):
    """The run was deleted, say: it would refuse the same at every try, and all that came after it would wait."""
    client = Deaf(answers=10_000)

    def refuse(run_id: str, metrics=(), **_: object) -> None:
        if any(m.step == 7 for m in metrics):
            raise MlflowException("deleted", error_code=INVALID_PARAMETER_VALUE)
        client.metrics += metrics

    monkeypatch.setattr(client, "log_batch", refuse)
    train_an_hour(client, monkeypatch)
    steps = [m.step for m in client.metrics if m.key == "loss"]
    assert set(range(3600)) - set(steps) == set(range(6, 12)), "those of one request"
    assert capsys.readouterr().err.count("takes no more of this run (MlflowException); the stage goes on") == 1


def test_what_waits_for_a_tracker_takes_little_memory(kept, monkeypatch, capsys):
    monkeypatch.setattr(open_run, "MOST", 1000)
    client = Deaf(answers=3, back=5)
    train_an_hour(client, monkeypatch)
    steps = [m.step for m in client.metrics if m.key == "loss"]
    assert sorted(steps) == list(range(3600)), "every step, once"
    assert "1001 metrics that were kept were sent" in capsys.readouterr().err
    assert not list(kept.glob("*.jsonl"))


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (LossNotFinite("x"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")],
)
def test_a_run_ends_as_its_stage_did(kept, monkeypatch, error, status):
    client = Deaf(answers=100)
    monkeypatch.setattr(store, "connect", lambda: (client, "0"))

    def work() -> None:
        with runs.stage_run("report", {}, {}) as tracked:
            tracked.log_step(0, {"loss": 1.0})
            if error:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    assert client.status == status
    assert [m.key for m in client.metrics] == ["loss"], "what was logged before is sent"


class TestProfiles:
    """What `--profile` and `--set` refuse; params.yaml is as it was after each refusal."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory, tracking_uri) -> Path:
        return new_project(tmp_path_factory.mktemp("profiles") / "project", tracking_uri).folder

    @pytest.fixture(autouse=True)
    def _inside(self, folder, monkeypatch):
        """In the project as git has it."""
        for words in (["checkout", "--quiet", "."], ["clean", "--quiet", "-fdx"]):
            subprocess.run(["git", *words], cwd=folder, check=True)
        monkeypatch.chdir(folder)

    @pytest.mark.parametrize(
        ("profile", "overrides", "message"),
        [
            ("no-such", [], r"expected one of the profiles \['default', .*'tiny'\], found 'no-such'"),
            ("tiny", ["sparsify.sparsty=0.9"], "found 'sparsty' in override"),
            ("tiny", ["sparsefy.sparsity=0.9"], "found 'sparsefy' in override"),
            ("tiny", ["tasks.other.finetune.epochs=2"], "found 'other' in override"),
            ("tiny", ["sparsify.sparsity.deep=1"], r"expected a section at sparsify\.sparsity"),
            (
                "tiny",
                ["sparsify.sparsity"],
                r"expected an override like sparsify\.sparsity=0\.9, found 'sparsify\.sparsity'",
            ),
            ("tiny", ["sparsify.sparsity=1.5"], r"sparsify\.sparsity: Input should be less than 1, found 1\.5"),
            ("tiny", ["sparsify.sparsity=high"], r"sparsify\.sparsity: Input should be a valid number, found 'high'"),
            ("tiny", ["sparsify.sparsity="], r"sparsify\.sparsity: Input should be a valid number, found None"),
            ("tiny", ["sparsify.sparsity=[0.9"], r"'sparsify\.sparsity=\[0\.9'"),
            ("tiny", [f"tasks.{TASK}.finetune.epoch=2"], "epoch: Extra inputs are not permitted"),
            (None, ["sparsify.steps=0"], r"sparsify\.steps: Input should be greater than 0"),
            ("broken", [], r"expected YAML in profiles/broken\.yaml"),
            ("broken", ["sparsify.steps=9"], r"expected YAML in profiles/broken\.yaml"),
        ],
    )
    def test_refused(self, profile, overrides, message):
        Path("profiles/broken.yaml").write_text("common: [")
        before = Path("params.yaml").read_bytes()
        with pytest.raises(ConfigError, match=message):
            profiles.select(profile, overrides)
        assert Path("params.yaml").read_bytes() == before

    def test_without_a_params_file(self):
        Path("params.yaml").unlink()
        with pytest.raises(ConfigError, match=r"expected the file params\.yaml, found none"):
            profiles.select(None)

    def test_edits_that_would_be_lost(self):
        edited = Path("params.yaml").read_text() + "# mine\n"
        Path("params.yaml").write_text(edited)
        with pytest.raises(ConfigError, match="found edits that profile 'tiny' would overwrite"):
            profiles.select("tiny")
        with pytest.raises(ConfigError, match="found edits that profile 'default' would overwrite"):
            profiles.select("default")
        assert Path("params.yaml").read_text() == edited

    def test_edits_on_top_of_an_override(self):
        profiles.select("tiny", ["sparsify.sparsity=0.5"])
        edited = Path("params.yaml").read_text() + "# mine\n"
        Path("params.yaml").write_text(edited)
        with pytest.raises(ConfigError, match="would overwrite"):
            profiles.select("default")
        assert Path("params.yaml").read_text() == edited

    def test_edits_below_an_override(self):
        Path("params.yaml").write_text(Path("params.yaml").read_text() + "# mine\n")
        profiles.select(None, ["sparsify.sparsity=0.8"])
        edited = Path("params.yaml").read_text()
        assert "# mine" in edited
        with pytest.raises(ConfigError, match="would overwrite"):
            profiles.select("default")
        assert Path("params.yaml").read_text() == edited

    def test_a_profile_with_overrides(self):
        overrides = ["sparsify.sparsity=0.5", f"tasks.{TASK}.finetune.epochs=1"]
        chosen = profiles.select("tiny", overrides)
        text = Path("params.yaml").read_text()
        assert chosen == load()
        assert (chosen.sparsify.sparsity, chosen.section("finetune", TASK).epochs) == (0.5, 1)
        assert text.startswith("# Written by a run with overrides: sparsify.sparsity=0.5")
        assert "# eager is the faster on CPUs" in text, "comments are kept"
        profile = load(Path("profiles/tiny.yaml"))
        assert chosen.model_copy(update={"sparsify": profile.sparsify, "tasks": profile.tasks}) == profile
        profiles.select("tiny", overrides)
        assert Path("params.yaml").read_text() == text, "again: not a byte changes"

    def test_there_and_back(self):
        committed = Path("params.yaml").read_bytes()
        for profile, overrides in [
            ("tiny", []),
            ("default", []),
            ("tiny", ["sparsify.steps=41"]),
            ("tiny", []),
            ("default", []),
        ]:
            profiles.select(profile, overrides)
        assert Path("params.yaml").read_bytes() == committed
        assert set(profiles.names()) >= {"default", "tiny"}


def test_a_log_keeps_every_fifth_step_and_no_speed(tmp_path):
    sent: list[int] = []
    log = Log(tmp_path / "scratch", lambda step, metrics: sent.append(step))
    for step in range(7):
        log(step, {"loss": 1 / (step + 1), "tokens_per_second": 5.0})
    log.write_history(tmp_path / "history.csv")
    assert (tmp_path / "history.csv").read_text() == "step,loss\n0,1\n5,0.166667\n"
    assert sent == list(range(7))
