"""Work that goes to another folder, and what comes back: only what was promised is taken over. Real DVC, no training."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import requests
import yaml
from dvc.repo import Repo
from mlflow.exceptions import MlflowException
from prefect import states
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import branch, commits, handing, merging, order, restoring, showing, sweep, units, workers
from flows.order import COMPRESS
from flows.repro import Outcome
from flows.trouble import StageFailed
from flows.units import RanOn, Team, Unit
from pipeline.tracking import handover
from pipeline.tracking.lock import locked
from pruneonce import projects
from pruneonce.errors import ConfigError, DataError, PipelineError, TrackerUnreachable
from tests.conftest import commit

PIPELINE = """
stages:
  sparsify:
    cmd: mkdir -p out/sparsify && cp seed out/sparsify/model && echo 1 > out/sparsify.json
    deps:
      - seed
    params:
      - rate
    outs:
      - out/sparsify
    metrics:
      - out/sparsify.json:
          cache: false
  finetune:
    foreach: ${tasks}
    do:
      cmd: cat out/sparsify/model > out/${item} && echo ${item} > out/${item}.json && echo ${item} >> ran
      deps:
        - out/sparsify
        - seed
      outs:
        - out/${item}
        - out/${item}.json:
            cache: false
  evaluate:
    foreach: ${tasks}
    do:
      cmd: cat out/${item} out/${item}.json > out/${item}.scores
      deps:
        - out/${item}
        - out/${item}.json
      outs:
        - out/${item}.scores
  report:
    cmd: cat out/a.scores out/b.scores > out/report
    deps:
      - out/a.scores
      - out/b.scores
    outs:
      - out/report:
          cache: false
"""
BRANCHES = {"a": ["finetune@a", "evaluate@a"], "b": ["finetune@b", "evaluate@b"]}


def repro(*stages: str) -> None:
    with Repo() as repo:
        for stage in stages:
            repo.reproduce(stage, single_item=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A repository whose shared stage has run and was pushed to a folder."""
    folder = tmp_path_factory.mktemp("made") / "home"
    folder.mkdir()
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "params.yaml").write_text("tasks: [a, b]\nrate: 1\n")
    (folder / "seed").write_text("seed\n" * 1000)
    (folder / ".gitignore").write_text("/out\n/ran\n")
    commit(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with Repo.init() as repo, repo.config.edit("local") as local:
            local["remote"]["store"] = {"url": str(folder.parent / "store")}
            local["core"]["remote"] = "store"
        repro("sparsify")
        with Repo() as repo:
            repo.push()
        commit(folder)
    return folder


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch) -> Path:
    """A copy of it, the working folder, with a remote of its own."""
    folder = tmp_path / "home"
    shutil.copytree(made, folder, symlinks=True)
    shutil.copytree(made.parent / "store", tmp_path / "store")
    (folder / ".dvc/config.local").write_text(
        f"[core]\n    remote = store\n['remote \"store\"']\n    url = {tmp_path}/store\n"
    )
    monkeypatch.chdir(folder)
    return folder


def elsewhere(home: Path, monkeypatch) -> Path:
    """Another machine: the same commit, the same remote, a cache of its own."""
    other = home.parent / "other"
    subprocess.run(["git", "clone", "-q", str(home), str(other)], check=True)
    shutil.copy(home / ".dvc/config.local", other / ".dvc/config.local")
    monkeypatch.chdir(other)
    return other


def head(folder: Path) -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True).stdout.strip()


def unit_of(home: Path, name: str = "a") -> Unit:
    with Repo() as repo:
        team = Team(head(home), str(home), units.remote_of(repo), False)
    return workers.make(name, BRANCHES[name], "0" * 32, team)


def computed(unit: Unit) -> dict[str, dict]:
    """Stage -> what a worker hands back; computed in the working folder, its outs pushed."""
    branch.lay_out(unit)
    branch.pull(unit.stages)
    found = {}
    for stage in unit.stages:
        repro(stage)
        with Repo() as repo:
            repo.push(targets=[stage])
            (own,) = repo.stage.collect(stage)
            small = [units.path_of(out) for out in own.outs if not out.use_cache]
        found[stage] = branch.result(unit, Outcome(stage, "ran", "new", 1.0), small)
    return json.loads(json.dumps(found))  # as it comes out of MLflow


def entries(lock: Path) -> dict[str, dict]:
    return yaml.safe_load(lock.read_text())["stages"]


def status(*stages: str) -> dict:
    with Repo() as repo:
        return repo.status(targets=list(stages) or None, with_deps=False)


def test_the_stages_of_a_run_fall_into_shared_ones_branches_and_the_last(home):
    found = order.parts(order.in_order(COMPRESS))
    assert found == order.Parts(["sparsify"], {"a": BRANCHES["a"], "b": BRANCHES["b"]}, ["report"])


def test_what_another_machine_computed_is_taken_over_and_nothing_is_left_to_do(home, monkeypatch):
    unit = unit_of(home)
    elsewhere(home, monkeypatch)
    results = computed(Unit.of_json(json.loads(json.dumps(unit.as_json()))))
    monkeypatch.chdir(home)
    done = merging.merge(unit, results)
    assert [(o.stage, o.result) for o in done] == [("finetune@a", "ran"), ("evaluate@a", "ran")]
    assert status(*unit.stages) == {}
    assert Path("out/a.json").read_text() == "a\n"
    assert Path("out/a.scores").read_text() == "seed\n" * 1000 + "a\n"
    assert set(locked()) == {"sparsify", *BRANCHES["a"]}
    before = Path("dvc.lock").read_bytes()
    repro(*BRANCHES["a"])
    assert Path("dvc.lock").read_bytes() == before


def test_the_other_machine_pulls_only_what_the_branch_reads(home, monkeypatch):
    unit = unit_of(home)
    other = elsewhere(home, monkeypatch)
    branch.lay_out(unit)
    assert branch.pull(unit.stages) == 5000
    assert (other / "out/sparsify/model").stat().st_size == 5000
    assert (other / "out/sparsify.json").exists() is False  # no stage of the branch reads it
    assert branch.pull(unit.stages) == 0


def test_what_was_merged_comes_back_from_the_cache_like_a_run_of_this_folder(home, monkeypatch):
    unit = unit_of(home)
    elsewhere(home, monkeypatch)
    results = computed(unit)
    monkeypatch.chdir(home)
    merging.merge(unit, results)
    for path in ("out/a", "out/a.json"):
        Path(path).unlink()
    shutil.rmtree(home.parent / "store")
    repro("finetune@a")
    assert Path("out/a.json").read_text() == "a\n"
    assert not Path("ran").exists(), "the command ran again"


@pytest.mark.parametrize("damage", ["text", "md5", "paths", "missing"])
def test_other_bytes_than_promised_are_not_taken_over(home, monkeypatch, damage):
    unit = unit_of(home)
    elsewhere(home, monkeypatch)
    results = computed(unit)
    monkeypatch.chdir(home)
    before = Path("dvc.lock").read_bytes()
    result = results["finetune@a"]
    if damage == "text":
        result["files"]["out/a.json"] = "b\n"
    elif damage == "md5":
        (out,) = [out for out in result["entry"]["outs"] if out["path"] == "out/a"]
        out["md5"] = hashlib.md5(b"other").hexdigest()
    elif damage == "paths":
        result["entry"]["outs"][0]["path"] = "../../etc/passwd"
    else:
        del result["files"]["out/a.json"]
    with pytest.raises((DataError, PipelineError)) as caught:
        merging.merge(unit, results)
    assert "expected" in str(caught.value)
    assert Path("dvc.lock").read_bytes() == before
    assert "evaluate@a" not in locked()


def test_a_remote_that_lost_an_object_is_said_and_nothing_is_merged(home, monkeypatch):
    unit = unit_of(home)
    elsewhere(home, monkeypatch)
    results = computed(unit)
    monkeypatch.chdir(home)
    (out,) = [out for out in results["finetune@a"]["entry"]["outs"] if out["path"] == "out/a"]
    (home.parent / f"store/files/md5/{out['md5'][:2]}/{out['md5'][2:]}").unlink()
    if (cached := home / f".dvc/cache/files/md5/{out['md5'][:2]}/{out['md5'][2:]}").exists():
        cached.unlink()
    before = Path("dvc.lock").read_bytes()
    with pytest.raises(PipelineError, match="finetune@a"):
        merging.merge(unit, results)
    assert Path("dvc.lock").read_bytes() == before


@pytest.mark.parametrize("was_there", [True, False])
@pytest.mark.parametrize("ended", ["at its outs", "as dvc.lock is written"])
def test_a_kill_while_a_result_is_taken_over_leaves_the_dvc_lock_before(home, monkeypatch, was_there, ended):
    unit = unit_of(home)
    result = {
        "key": unit.key, "entry": {"cmd": "x", "outs": [{"path": "out/a", "md5": "0" * 32}]}, "files": {},
        "result": "ran", "why": "new", "seconds": 1.0, "where": "w1",
    }  # fmt: skip
    if not was_there:
        Path("dvc.lock").unlink()
    before = Path("dvc.lock").read_bytes() if was_there else None

    def stopped(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr(merging, "_checked", lambda *words: {})
    monkeypatch.setattr(merging, "_fetch" if ended == "at its outs" else "sync", stopped)
    with pytest.raises(KeyboardInterrupt):
        merging.take_over("finetune@a", result)
    assert (Path("dvc.lock").read_bytes() if Path("dvc.lock").exists() else None) == before
    assert not Path("dvc.lock.part").exists()


@pytest.mark.parametrize("change", [{"entry": None}, {"entry": {"outs": [{}]}}, {"files": []}, {"where": None}])
def test_a_result_in_another_form_is_an_error_in_words(change):
    whole = {"entry": {"outs": []}, "files": {}, "result": "ran", "why": "new", "seconds": 1, "where": "w1"}
    assert units.recorded("finetune@a", whole) == {}
    with pytest.raises(DataError, match=f"expected a result of finetune@a .* found another {next(iter(change))}"):
        units.recorded("finetune@a", whole | change)


def test_a_result_of_another_key_is_no_result(home, monkeypatch):
    unit = unit_of(home)
    elsewhere(home, monkeypatch)
    results = computed(unit)
    monkeypatch.chdir(home)
    Path("seed").write_text("another\n")
    changed = dataclasses.replace(unit, key=unit_of(home).key)
    assert changed.key != unit.key
    assert merging.merge(changed, results) == []


def test_the_key_changes_with_code_params_and_inputs_and_with_nothing_else(home):
    key = unit_of(home).key
    assert unit_of(home).key == key
    assert unit_of(home, "b").key != key
    Path("README").write_text("of no stage")
    Path("params.yaml").write_text("tasks: [a, b, c]\nrate: 1\n")
    assert unit_of(home).key == key
    Path("dvc.yaml").write_text(PIPELINE.replace("cat out/sparsify/model", "cat  out/sparsify/model"))
    assert unit_of(home).key != key


def test_a_clone_that_differs_from_the_coordinators_folder_computes_nothing(home, monkeypatch):
    unit = unit_of(home)
    other = elsewhere(home, monkeypatch)
    (other / "seed").write_text("other line ends\r\n")
    with pytest.raises(PipelineError, match="this clone is not what the coordinator has"):
        branch.lay_out(unit)
    for path in ("../outside", f"{other.parent}/outside", ".git/hooks/post-checkout", "seed", "out/a"):
        before = Path(path).read_bytes() if Path(path).exists() else None
        with pytest.raises(DataError, match="expected files of the project"):
            branch.lay_out(dataclasses.replace(unit, files={path: "x"}))
        assert (Path(path).read_bytes() if Path(path).exists() else None) == before
    with pytest.raises(PipelineError, match="expected the commit 1111"):
        branch.lay_out(dataclasses.replace(unit, team=dataclasses.replace(unit.team, commit="1" * 40)))


def test_a_branch_whose_outs_are_in_the_remote_alone_is_restored(home, monkeypatch):
    repro(*BRANCHES["a"])
    with Repo() as repo:
        repo.push()
    shutil.rmtree(home / ".dvc/cache")
    Path("out/a").unlink()
    assert restoring.restored("finetune@a").result == "restored from cache"
    assert Path("out/a").exists()
    assert restoring.restored("evaluate@a").result in ("unchanged", "restored from cache")
    assert restoring.restored("finetune@b") is None


@pytest.mark.parametrize("change", ["rate: 2", "seed"])
def test_a_stage_that_changed_since_it_ran_must_run(home, change, monkeypatch):
    """Its old outs are in the cache, and its entry in dvc.lock: neither is what it would make now."""
    file = home / ("params.yaml" if ":" in change else change)
    before = file.read_text()
    after = before.replace("rate: 1", change) if ":" in change else before + "more\n"
    file.write_text(after)
    assert restoring.restored("sparsify") is None
    for text in (after, before):
        file.write_text(text)
        repro("sparsify")
    file.write_text(after)
    monkeypatch.setattr(restoring, "repro", lambda stage: f"DVC has {stage} in its cache of runs")
    assert restoring.restored("sparsify"), "an earlier run was with these values"


def test_a_damaged_file_in_the_cache_is_not_restored(home):
    repro(*BRANCHES["a"])
    (out,) = [out for out in entries(Path("dvc.lock"))["finetune@a"]["outs"] if out["path"] == "out/a"]
    cached = home / f".dvc/cache/files/md5/{out['md5'][:2]}/{out['md5'][2:]}"
    cached.chmod(0o644)
    cached.write_bytes(b"other\n" * 1000)
    cached.chmod(0o444)  # DVC trusts such a file
    Path("out/a").unlink()
    with pytest.raises(DataError, match=r"found other bytes in out/a of finetune@a; DVC's cache has the same"):
        restoring.restored("finetune@a")
    assert not Path("out/a").exists()


def test_signatures_tell_which_stages_two_settings_share(home):
    first = order.signatures()
    assert len(first) == 6
    assert order.signatures() == first
    Path("params.yaml").write_text("tasks: [a, b]\nrate: 2\n")
    assert not set(first.values()) & set(order.signatures().values())


class Answers:
    """A worker's store and its runs, by hand: what MLflow and Prefect would say."""

    def __init__(self, monkeypatch, states: dict[str, list[str]]):
        self.states, self.given, self.started, self.closed = states, [], [], []
        self.results: dict[str, dict] = {}
        monkeypatch.setattr(handover, "give", lambda run, name, key, work: self.given.append(name))
        monkeypatch.setattr(handover, "results", lambda run, name: self.results.get(name, {}))
        monkeypatch.setattr(handover, "close_runs", lambda parents, stages: self.closed.append(stages))
        monkeypatch.setattr(handing, "_at_work", lambda unit: None)
        monkeypatch.setattr(handing, "run_deployment", self.start)
        monkeypatch.setattr(handing, "_state", self.state)
        monkeypatch.setattr(handing, "LOOK_SECONDS", 0.0)

    def start(self, deployment, *, parameters, **words):
        self.started.append(parameters["name"])
        return SimpleNamespace(id=(parameters["name"], self.started.count(parameters["name"])))

    def state(self, flow_run):
        name, turn = flow_run
        kind = self.states[name][turn - 1]
        return getattr(states, kind)(message=f"{kind} of {name}")


def some(stages: list[str]) -> dict[str, dict]:
    """Results that say nothing."""
    return {stage: {} for stage in stages}


def all_of(unit: Unit, results, ready):
    """A `take` that believes everything."""
    return [RanOn(s, "ran", "new", 1.0, "w1") for s in unit.stages if s in results and s not in ready]


@pytest.fixture
def two(home) -> list[Unit]:
    return [unit_of(home, name) for name in BRANCHES]


def wait_for_all(two: list[Unit], tries: int, take=all_of) -> list[str]:
    done: list[str] = []
    with disable_run_logger():
        handed = [handing.hand_out(unit, "0" * 32, ready=set(), tries=tries) for unit in two]
        try:
            handing.collect(handed, take, lambda outcome: done.append(outcome.stage))
        finally:
            assert handed == []
    return done


def test_a_branch_whose_worker_died_is_handed_out_again(two, monkeypatch):
    answers = Answers(monkeypatch, {"a": ["Crashed", "Completed"], "b": ["Completed"]})
    answers.results = {name: some(stages) for name, stages in BRANCHES.items()}
    half = {"a": some(BRANCHES["a"][:1]), "b": answers.results["b"]}
    whole, answers.results = answers.results, half
    original = answers.start

    def start(deployment, **words):
        if "a" in answers.started and words["parameters"]["name"] == "a":
            answers.results = whole
        return original(deployment, **words)

    monkeypatch.setattr(handing, "run_deployment", start)
    done = wait_for_all(two, tries=1)
    assert answers.started == ["a", "b", "a"]
    assert answers.closed == [BRANCHES["a"]]  # the MLflow runs that the dead worker left open
    assert sorted(done) == sorted([*BRANCHES["a"], *BRANCHES["b"]])  # each once


def test_a_branch_that_fails_is_named_with_its_message_and_the_other_is_kept(two, monkeypatch):
    answers = Answers(monkeypatch, {"a": ["Failed"], "b": ["Completed"]})
    answers.results = {"b": some(BRANCHES["b"])}
    with pytest.raises(
        StageFailed, match=r"a failed on its worker: Failed of a\. All else that was computed is kept"
    ) as caught:
        wait_for_all(two, tries=3)
    assert "b failed" not in str(caught.value)
    assert answers.started == ["a", "b"]  # an error with a message is not tried again


def test_results_in_a_store_that_is_away_are_waited_for(two, monkeypatch):
    answers = Answers(monkeypatch, {"a": ["Completed"], "b": ["Completed"]})
    whole = {name: some(stages) for name, stages in BRANCHES.items()}
    asked = []

    def results(run: str, name: str) -> dict[str, dict]:
        asked.append(name)
        if len(asked) < 6:
            raise TrackerUnreachable("expected an MLflow tracking store, found none")
        return whole[name]

    monkeypatch.setattr(handover, "results", results)
    assert sorted(wait_for_all(two, tries=0)) == sorted([*BRANCHES["a"], *BRANCHES["b"]])
    assert answers.started == ["a", "b"]


def test_outs_are_pushed_only_where_another_machine_must_get_them(home, monkeypatch):
    """The cells of a sweep that are computed here share the cache. A file stands where the remote's folder was."""
    with Repo() as repo:
        there = Team(head(home), str(home), units.remote_of(repo), False)
    shutil.rmtree(home.parent / "store")
    (home.parent / "store").write_text("a disk that is away\n")
    came: list[str] = []
    monkeypatch.setattr(handover, "hand_back", lambda run, name, stage, result: came.append(stage))
    outcome = Outcome("sparsify", "ran", "new", 1.0)
    here = workers.make("a", BRANCHES["a"], "0" * 32, dataclasses.replace(there, remote=None))
    branch.deliver.fn("run", here, outcome)
    assert came == ["sparsify"]
    with pytest.raises(
        PipelineError, match=r"a DVC remote that takes the outs of sparsify, .*\. See that the remote answers"
    ):
        branch.deliver.fn("run", dataclasses.replace(here, team=there), outcome)
    assert came == ["sparsify"]


def test_an_error_of_one_branch_does_not_end_the_others(two, monkeypatch):
    """Such as one of a remote's library, or of a result that is no result."""
    answers = Answers(monkeypatch, {"a": ["Completed"], "b": ["Completed"]})
    answers.results = {name: some(stages) for name, stages in BRANCHES.items()}
    came = []

    def take(unit, results, ready):
        if unit.name == "a":
            raise KeyError("outs of http://me:s3cret@host")
        came.append(unit.name)
        return all_of(unit, results, ready)

    with pytest.raises(StageFailed, match=r"a failed on its worker: KeyError: .*http://host.* All else") as caught:
        wait_for_all(two, tries=0, take=take)
    assert "b failed" not in str(caught.value)
    assert came == ["b"]


def test_a_server_that_is_away_when_a_branch_is_to_be_handed_out_again_is_asked_again(two, monkeypatch):
    answers = Answers(monkeypatch, {"a": ["Crashed", "Completed"], "b": ["Completed"]})
    whole = {name: some(stages) for name, stages in BRANCHES.items()}
    answers.results, original, away = {"b": whole["b"]}, answers.start, [0]

    def start(deployment, **words):
        if "a" in answers.started and words["parameters"]["name"] == "a":
            away[0] += 1
            if away[0] < 4:
                raise httpx.ConnectError("away")
            answers.results = whole
        return original(deployment, **words)

    monkeypatch.setattr(handing, "run_deployment", start)
    done = wait_for_all(two, tries=1)
    assert away == [4]
    assert sorted(done) == sorted([*BRANCHES["a"], *BRANCHES["b"]])
    answers.states, answers.started, away[0] = {"a": ["Crashed"], "b": ["Completed"]}, [], -1000
    answers.results = {"b": whole["b"]}
    with pytest.raises(StageFailed, match="a failed on its worker: ConnectError: away") as caught:
        wait_for_all(two, tries=1)
    assert "b failed" not in str(caught.value)


def test_a_branch_that_cannot_be_handed_out_does_not_end_the_others(home, monkeypatch):
    answers = Answers(monkeypatch, {"b": ["Completed"]})
    answers.results = {"b": some(BRANCHES["b"])}
    original = answers.start

    def start(deployment, **words):
        if words["parameters"]["name"] == "a":
            raise httpx.ConnectError("away")
        return original(deployment, **words)

    monkeypatch.setattr(handing, "run_deployment", start)
    monkeypatch.setattr(workers, "without_computing", lambda *words: iter(()))
    monkeypatch.setattr(merging, "merge", all_of)
    done = []
    with disable_run_logger(), pytest.raises(StageFailed, match=r"^a was not handed out: ConnectError: away\. All else"):
        workers.work_off(BRANCHES, "0" * 32, unit_of(home).team, retries=0, done=lambda outcome: done.append(outcome.stage))
    assert done == BRANCHES["b"]


def of_another(monkeypatch, name: str, called: str | None = None) -> None:
    """Another coordinator has this unit at a worker already, in its MLflow run `theirs`. called: its name there."""
    theirs = SimpleNamespace(id=(name, 1), parameters={"run": "theirs", "name": called or name})
    known = iter([theirs])
    monkeypatch.setattr(handing, "_at_work", lambda unit: next(known, None) if unit.name == name else None)


def test_what_another_coordinator_calls_otherwise_is_found_under_its_name(two, monkeypatch):
    """The same cell of a grid of other keys has another name."""
    answers = Answers(monkeypatch, {"a": ["Completed"], "b": ["Completed"]})
    answers.results = {"a of theirs": some(BRANCHES["a"]), "b": some(BRANCHES["b"])}
    of_another(monkeypatch, "a", called="a of theirs")
    assert sorted(wait_for_all(two, tries=0)) == sorted([*BRANCHES["a"], *BRANCHES["b"]])
    assert answers.started == ["b"]


@pytest.mark.parametrize("end", ["Crashed", "Cancelled"])
def test_what_another_coordinator_called_otherwise_is_handed_out_again_under_its_name(two, monkeypatch, end):
    """There the next worker finds the stages that came back, and so does the coordinator after this one."""
    answers = Answers(monkeypatch, {"a": [end], "b": ["Completed"]})
    answers.results = {"b": some(BRANCHES["b"])}
    of_another(monkeypatch, "a", called="theirs")

    def start(deployment, *, parameters, **words):
        answers.started.append(parameters["name"])
        if parameters["name"] == "theirs":
            answers.states["theirs"], answers.results["theirs"] = ["Completed"], some(BRANCHES["a"])
        return SimpleNamespace(id=(parameters["name"], answers.started.count(parameters["name"])))

    monkeypatch.setattr(handing, "run_deployment", start)
    assert sorted(wait_for_all(two, tries=1)) == sorted([*BRANCHES["a"], *BRANCHES["b"]])
    assert answers.given == answers.started == ["b", "theirs"]


def test_a_branch_that_another_coordinator_cancelled_is_handed_out_again(two, monkeypatch):
    answers = Answers(monkeypatch, {"a": ["Cancelled"], "b": ["Completed"]})
    answers.results = {"b": some(BRANCHES["b"])}
    of_another(monkeypatch, "a")
    given, original = [], answers.start

    def start(deployment, **words):
        if words["parameters"]["name"] == "a":
            given.append(words["parameters"]["run"])
            answers.states["a"], answers.results["a"] = ["Completed"], some(BRANCHES["a"])
        return original(deployment, **words)

    monkeypatch.setattr(handing, "run_deployment", start)
    assert sorted(wait_for_all(two, tries=0)) == sorted([*BRANCHES["a"], *BRANCHES["b"]])
    assert given == ["theirs"]  # where the stages are that came back
    answers.states = {"a": ["Completed"], "b": ["Cancelled"] * 2}
    answers.started, answers.results = ["a"], {"a": some(BRANCHES["a"])}
    with pytest.raises(StageFailed, match="b failed on its worker: Cancelled of b"):  # somebody wanted this one to end
        wait_for_all(two[1:], tries=3)


def test_ctrl_c_cancels_the_own_branches_alone(two, monkeypatch):
    Answers(monkeypatch, {})
    of_another(monkeypatch, "a")
    cancelled, closed = [], []
    client = SimpleNamespace(set_flow_run_state=lambda flow_run, state: cancelled.append((flow_run, state.type.value)))
    monkeypatch.setattr(handing, "get_client", lambda **words: nullcontext(client))

    def stopped() -> None:
        with handing.cancelled_at_the_end(lambda: closed.append(True)) as handed:
            handed += [handing.hand_out(unit, "0" * 32, ready=set(), tries=0) for unit in two]
            raise KeyboardInterrupt

    with disable_run_logger(), pytest.raises(KeyboardInterrupt):
        stopped()
    assert cancelled == [(("b", 1), "CANCELLING")]
    assert closed == [True]


COORDINATOR, BRANCH = {"profile": "tiny", "workers": True}, {"run": "0" * 32, "name": "a"}


@pytest.mark.parametrize(
    ("others", "given_up"), [([], True), ([COORDINATOR], True), ([BRANCH], False), ([{"profile": "default"}], False)]
)
def test_runs_that_hold_all_workers_do_not_wait_for_ever(two, monkeypatch, others, given_up):
    """others: the parameters of what else runs in the pool."""
    Answers(monkeypatch, {})
    monkeypatch.setattr(handing, "_state", lambda flow_run: states.Scheduled())
    monkeypatch.setattr(handing, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(handing, "HELD_SECONDS", 0.0)
    at_work = [SimpleNamespace(parameters=parameters) for parameters in (COORDINATOR, *others)]
    cancelled = []
    client = SimpleNamespace(
        read_deployment_by_name=lambda name: SimpleNamespace(work_pool_name="pruneonce"),
        read_flow_runs=lambda **filters: at_work,
        set_flow_run_state=lambda flow_run, state: cancelled.append(flow_run),
    )
    monkeypatch.setattr(handing, "get_client", lambda **words: nullcontext(client))
    with disable_run_logger():
        handed = [handing.hand_out(unit, "0" * 32, ready=set(), tries=0) for unit in two]
        monkeypatch.delenv("PREFECT__WORKER_NAME", raising=False)
        assert handing.Idle().look(handed) == []  # not on a worker: somebody may start one at any time
        monkeypatch.setenv("PREFECT__WORKER_NAME", "w1")
        if not given_up:
            assert handing.Idle().look(handed) == []
            return
        with pytest.raises(StageFailed, match=r"a was not computed: expected a worker .*b was not computed"):
            handing.collect(handed, all_of, lambda outcome: None)
    assert cancelled == [("a", 1), ("b", 1)]


def test_a_store_that_is_away_is_not_one_that_has_no_such_artifact():
    def answer(status: int) -> requests.HTTPError:
        response = requests.Response()
        response.status_code = status
        return requests.HTTPError(f"{status} for url: http://host:4040/run-404404", response=response)

    lost = MlflowException("failures occurred: HTTPConnectionPool(host='x', port=4040): /artifacts/ab404c/done: refused")
    away = [
        requests.ConnectionError("/artifacts/404"),
        requests.Timeout("404"),
        answer(503),
        answer(500),
        lost,
        OSError(5, "EIO"),
    ]
    assert [error for error in away if handover._absent(error)] == []
    said = "failures occurred: ##### File done/a.json ##### 404 Client Error: NOT FOUND for url: http://x"
    boto = "An error occurred (404) when calling the HeadObject operation: Not Found"
    missing = [answer(404), MlflowException(said), Exception(boto), FileNotFoundError(2, "No such file or directory")]
    assert [error for error in missing if not handover._absent(error)] == []


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", ".hidden", "a/b", "a\nb", "x" * 101, "-x"])
def test_a_sweep_writes_into_a_folder_of_its_own(name):
    with pytest.raises(ConfigError, match="expected a name of letters"):
        sweep.check([], None, [], name)


def test_a_branch_that_dies_again_and_again_is_given_up(two, monkeypatch):
    answers = Answers(monkeypatch, {"a": ["Crashed"] * 3, "b": ["Completed"]})
    answers.results = {"b": some(BRANCHES["b"])}
    with pytest.raises(StageFailed, match="a failed on its worker: Crashed of a"):
        wait_for_all(two, tries=2)
    assert answers.started.count("a") == 3


def test_an_address_with_a_password_is_not_handed_over(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@server:5000")
    assert handing.store_address() is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert handing.store_address() == "http://server:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert handing.store_address() == f"sqlite:///{home}/mlflow.db"
    with Repo() as repo:
        assert units.remote_of(repo) == {"name": "store", "url": f"{home.parent}/store"}
        repo.config["remote"]["store"] = {"url": "https://me:secret@host/x", "password": "secret", "endpointurl": "http://e"}
        assert units.remote_of(repo) == {"name": "store"}  # the worker must have it itself


def test_a_stage_that_the_flow_cannot_hand_over_is_said_before_anything_runs(home, monkeypatch):
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(PipelineError, match="prefect server start"):
        workers.team()
    monkeypatch.setattr(projects, "is_clone", lambda: True)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        (home / "pruneonce").mkdir()
        (home / "pruneonce/new.py").touch()
        with pytest.raises(PipelineError, match=r"expected all code in a commit, .*pruneonce/new.py"):
            workers.team()
        shutil.rmtree(home / "pruneonce")
        (home / "profiles").mkdir()
        (home / "profiles/mine.yaml").touch()
        assert commits.head("profiles/other.yaml")
        with pytest.raises(PipelineError, match=r"expected all code in a commit, .*profiles/mine.yaml in none\. Commit"):
            workers.team("profiles/other.yaml", "profiles/mine.yaml")
        Path("seed").write_text("edited")
        with pytest.raises(PipelineError, match=r"expected all code in a commit, .*seed"):
            workers.team()
        subprocess.run(["git", "checkout", "-q", "seed"], check=True)
        Path("params.yaml").write_text("tasks: [a]\nrate: 3\n")  # is handed over as it is
        Path(".dvc/config.local").write_text("")
        with pytest.raises(PipelineError, match="dvc remote add"):
            workers.team()


def test_a_commit_that_origin_does_not_have_must_be_pushed(home, monkeypatch):
    monkeypatch.setattr(projects, "is_clone", lambda: True)
    assert commits.repository(commits.head()) == str(home)  # without an origin, workers of this machine clone the folder
    origin = home.parent / "origin.git"
    subprocess.run(["git", "init", "-q", "--bare", str(origin)], check=True)
    subprocess.run(["git", "remote", "add", "origin", str(origin)], check=True)
    with pytest.raises(PipelineError, match=r"Push it: git push"):
        commits.repository(commits.head())
    subprocess.run(["git", "push", "-q", "origin", "HEAD"], check=True)
    assert commits.repository(commits.head()) == str(origin)
    for address in ("https://example.org/team.git", "git@example.org:team.git", "ssh://git@example.org:22/team.git"):
        monkeypatch.setenv(commits.REPOSITORY, address)
        assert commits.repository(commits.head()) == address


@pytest.mark.parametrize(
    "address",
    ["https://me:s3cret@example.org/x.git", "https://s3cret@example.org/x.git", "ssh://me:s3cret@example.org/x.git"],
)
def test_a_repository_with_a_password_is_refused_and_that_of_origin_is_handed_over_without_it(home, monkeypatch, address):
    monkeypatch.setenv(commits.REPOSITORY, address)
    with pytest.raises(PipelineError, match=r"without user and password in PRUNEONCE_REPOSITORY.*credential") as caught:
        commits.repository(head(home))
    assert "s3cret" not in str(caught.value)
    monkeypatch.delenv(commits.REPOSITORY)
    subprocess.run(["git", "remote", "add", "origin", address], check=True)
    subprocess.run(["git", "update-ref", "refs/remotes/origin/main", "HEAD"], check=True)
    assert commits.repository(head(home)) == f"{address.partition('://')[0]}://example.org/x.git"


def test_gits_index_is_not_written_by_what_a_run_says_at_its_end(home):
    """A kill in that moment would leave its lock behind."""
    os.utime("params.yaml", (1, 1))  # git would note that its content is the same
    index = home / ".git/index"
    before = index.stat().st_ino, index.stat().st_mtime_ns
    showing.to_commit()
    assert (index.stat().st_ino, index.stat().st_mtime_ns) == before
    subprocess.run(["git", "status", "--porcelain"], check=True, capture_output=True)
    assert (index.stat().st_ino, index.stat().st_mtime_ns) != before, "git has no reason to write: this tests nothing"
