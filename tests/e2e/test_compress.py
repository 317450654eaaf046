"""The whole pipeline on the tiny profile, in a copy: by the flow, again, after one change, by DVC alone."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from mlflow import MlflowClient

from pipeline import hashing
from pipeline.tracking import lock
from tests import warm
from tests.conftest import ROOT, copy_project, copy_store, wait_for
from tests.e2e.conftest import ALONE, CANARIES, environment, kept_in, prefect_home, prefect_server, started
from tests.pages import IN_ORDER, blocks, inline, saved

STAGES = 14  # three sources, and each of the eleven other stages once: tiny has one task
# Depends on the clock: latency is measured, and the report shows it.
TIMED = ("data/latency", "data/report")

pytestmark = pytest.mark.slow


def run(command: list[str], cwd: Path, *, expect: int = 0) -> str:
    """Run a command in the copy and return all it printed."""
    env = environment(cwd, prefect_home(cwd)) | CANARIES | {"COLUMNS": "150", "PAGER": "cat", "GIT_PAGER": "cat"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=1800)
    output = done.stdout + done.stderr
    assert done.returncode == expect, output[-6000:]
    return output


def compress(cwd: Path, *arguments: str, expect: int = 0) -> str:
    return run(["python", "-m", "flows.compress", *arguments], cwd, expect=expect)


def outcomes(output: str) -> dict[str, str]:
    """stage -> outcome, from the flow's log."""
    return dict(re.findall(r"\d+/\d+ (\S+): (ran|restored from cache|unchanged) \(", output))


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    return copy_project(tmp_path_factory.mktemp("copy"))


@pytest.fixture(scope="module")
def first(copy: Path) -> Iterator[str]:
    """The output of the first run, which starts a Prefect server of its own. Those after it find one: that takes seconds."""
    output = run([sys.executable, "-m", "flows.compress", "--profile", "tiny"], copy)
    with prefect_server(prefect_home(copy)):
        yield output


def test_first_run_runs_everything_and_ends_with_the_table(copy: Path, first: str):
    done = outcomes(first)
    assert len(done) == STAGES
    assert set(done.values()) == {"ran"}
    assert f"{STAGES} of {STAGES} stages ran" in first
    table = json.loads((copy / "data/report/report.json").read_text())
    assert [(row["task"], row["variant"]) for row in table] == [("topic", v) for v in ("dense", "sparse", "int8")]
    for row in table[1:]:
        assert row["sparsity"] == pytest.approx(0.85, abs=0.01)
        assert f"{row['score']:.2%}" in first


def test_no_secret_of_the_environment_is_shown_or_kept(copy: Path, first: str):
    """In MLflow's and Prefect's databases, artifacts, dvc.lock, the report, the cards, the models."""
    assert kept_in(first, copy, prefect_home(copy)) == []
    assert {"mlflow.db", "dvc.lock", "report.html", "int8.onnx"} <= {path.name for path in copy.rglob("*")}
    assert (prefect_home(copy) / "prefect.db").exists()


def test_mlflow_holds_one_run_a_stage_under_one_parent(copy: Path, first: str):
    client = MlflowClient(f"sqlite:///{copy}/mlflow.db")
    experiment = client.get_experiment_by_name("pruneonce").experiment_id
    runs = client.search_runs([experiment], max_results=100)
    parents = [r for r in runs if "pruneonce.flow" in r.data.tags]
    children = {r.data.tags["pruneonce.stage"]: r for r in runs if "pruneonce.stage" in r.data.tags}
    assert len(parents) == 1
    assert len(children) == STAGES
    stages = lock.locked(copy)
    for name, child in children.items():
        assert child.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert len(child.data.tags["mlflow.source.git.commit"]) == 40
        tags = {key: json.loads(child.data.tags[f"pruneonce.{key}"]) for key in ("outs", "deps", "code", "versions")}
        assert tags["outs"] == stages[name].outs
        assert tags["deps"] | tags["code"] == stages[name].deps
        assert {"python", "torch", "onnxruntime"} <= set(tags["versions"])
    parent = parents[0].data
    assert {"topic.int8.score", "topic.dense.score", "topic.int8.packed_bytes", "seconds.sparsify"} <= set(parent.metrics)
    assert children["evaluate@topic"].data.metrics["int8.score"] == parent.metrics["topic.int8.score"]
    said = json.loads(Path(client.download_artifacts(parents[0].info.run_id, "stages.json")).read_text())
    assert {name: row["run"] for name, row in said.items()} == {name: run.info.run_id for name, run in children.items()}
    sparsify = children["sparsify"]
    assert sparsify.data.params["sparsify.sparsity"] == "0.85"
    assert len(client.get_metric_history(sparsify.info.run_id, "sparsity")) == 40
    assert {"hard", "hidden", "loss", "tokens_per_second"} <= set(sparsify.data.metrics)


def is_code(path: str) -> bool:
    return path.startswith(("stages/", "pruneonce/", "pipeline/"))


def registered(project: Path) -> dict[str, set[str]]:
    """md5 -> aliases, of the versions in MLflow's registry."""
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    versions = client.search_model_versions("name = 'pruneonce-topic'")
    return {v.tags["md5"]: set(client.get_model_version(v.name, v.version).aliases) for v in versions}


def exported(project: Path) -> str:
    """The md5 of the int8 file in dvc.lock."""
    return lock.locked(project)["export@topic"].outs["data/export/topic/int8.onnx"]


def test_the_model_is_registered_and_no_alias_follows_a_profile_that_is_not_committed(copy: Path, first: str):
    assert registered(copy) == {exported(copy): set()}
    assert "@current stays at no version" in first
    assert "params.yaml is not the committed one, but from profiles/tiny.yaml. Commit it" in first


def test_the_closing_lines_have_the_verdict_of_the_gates(copy: Path, first: str):
    assert re.search(r"(?m)^gates: topic: all 6 hold|^gates: topic FAILED: ", first)


def test_second_run_computes_nothing(copy: Path, first: str):
    done = outcomes(compress(copy))
    assert len(done) == STAGES
    assert set(done.values()) == {"unchanged"}
    assert "Data and pipelines are up to date" in run(["dvc", "status", "dvc.yaml"], copy)


def test_one_number_reruns_what_is_below_it_and_back_is_restored(copy: Path, first: str):
    below = {"quantize@topic", "export@topic", "evaluate@topic", "report"}
    original = exported(copy)
    done = outcomes(compress(copy, "--set", "quantize.learning_rate=0.0002"))
    assert {stage for stage, outcome in done.items() if outcome == "ran"} == below
    assert sum(outcome == "unchanged" for outcome in done.values()) == STAGES - len(below)
    assert exported(copy) != original
    assert registered(copy).keys() == {exported(copy), original}

    done = outcomes(compress(copy, "--profile", "tiny"))
    assert done["quantize@topic"] == "restored from cache"
    assert {stage for stage, outcome in done.items() if outcome == "ran"} <= {"report"}  # git keeps its page, not DVC
    assert exported(copy) == original
    assert len(registered(copy)) == 2


def test_a_corrupt_file_of_dvcs_cache_stops_the_run_and_the_advice_repairs_it(copy: Path, first: str):
    weights = copy / "data/sparsify/model/model.safetensors"
    right, md5 = weights.read_bytes(), hashing.file_md5(weights)
    bad = copy / f".dvc/cache/files/md5/{md5[:2]}/{md5[2:]}"
    bad.chmod(0o644)
    bad.write_bytes(right[:-1] + b"X")
    bad.chmod(0o444)
    shutil.rmtree(weights.parent)
    run(["dvc", "checkout", "data/sparsify/model"], copy)
    assert weights.read_bytes() != right
    output = compress(copy, "--set", "finetune.learning_rate=0.0003", expect=1)
    assert "StageFailed: finetune@topic failed" in output
    (line,) = [line for line in output.splitlines() if line.startswith("finetune: DataError")]
    assert "found other bytes in data/sparsify/model (model.safetensors) of sparsify" in line
    run(["bash", "-euc", line.partition("To repair it: ")[2]], copy)
    assert weights.read_bytes() == right
    done = outcomes(compress(copy, "--profile", "tiny"))
    assert len(done) == STAGES
    assert {stage for stage, outcome in done.items() if outcome == "ran"} <= {"report"}


def test_the_folder_of_a_source_that_is_gone_changes_no_byte_of_the_corpus(copy: Path, first: str):
    """It stays in data/raw, where DVC counts it, so the corpus is made again; nothing below it is."""
    text, lock = (copy / "params.yaml").read_text(), (copy / "dvc.lock").read_text()
    more = "fetch_local:\n  more: {path: tests/tiny/text, members: {corpus.txt: corpus.txt}, sha256: null}\n"
    assert text.count("fetch_local:\n") == 1
    (copy / "params.yaml").write_text(text.replace("fetch_local:\n", more))
    corpus = hashing.file_md5(copy / "data/prepare_corpus/tokens")
    try:
        done = outcomes(compress(copy))
        assert {stage for stage, outcome in done.items() if outcome != "unchanged"} == {"fetch_local@more", "prepare_corpus"}
    finally:
        (copy / "params.yaml").write_text(text)
    assert set(outcomes(compress(copy)).values()) == {"unchanged"}
    assert (copy / "data/raw/more").exists()
    shutil.rmtree(copy / "data/raw/more")
    done = outcomes(compress(copy))
    assert {stage: outcome for stage, outcome in done.items() if outcome != "unchanged"} == {
        "prepare_corpus": "restored from cache"
    }
    assert hashing.file_md5(copy / "data/prepare_corpus/tokens") == corpus
    (copy / "dvc.lock").write_text(lock)  # DVC keeps the entry of the stage that is gone


def test_what_one_machine_pushed_another_one_has(copy: Path, first: str, tmp_path: Path):
    """docs/servers.md's commands. The other machine has what git keeps, and a cache of its own."""
    page = (ROOT / "docs/servers.md").read_text()
    remote, push, pull = re.findall(r"^(dvc .*)$", page, re.MULTILINE)
    remote = remote.replace("s3://BUCKET/dvc", str(tmp_path / "storage"))
    other = copy_project(tmp_path / "other")
    prefect_home(other).symlink_to(prefect_home(copy))  # its server: of this machine, nothing is asked
    for name in run(["git", "ls-files", "--others", "--modified", "--exclude-standard"], copy).split():
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(copy / name, other / name)
    assert (other / "dvc.lock").is_file()
    assert not (other / "data/sparsify").exists()
    try:
        for folder, command in ((copy, remote), (copy, push), (other, remote), (other, pull)):
            run(["python", "-m", *shlex.split(command)], folder)
    finally:
        run(["python", "-m", "dvc", "remote", "remove", "--local", "storage"], copy)
    done = outcomes(compress(other))
    assert len(done) == STAGES
    assert set(done.values()) == {"unchanged"}


def test_trace_leads_from_the_model_to_its_sources(copy: Path, first: str, tmp_path: Path):
    moved = tmp_path / "deployed.onnx"
    shutil.copy(copy / "data/export/topic/int8.onnx", moved)
    for file in ("data/export/topic/int8.onnx", str(moved)):
        tree = run(["python", "-m", "pipeline.cli", "trace", file], copy)
        for stage in (
            "export@topic",
            "quantize@topic",
            "finetune@topic",
            "sparsify",
            "prepare_teacher",
            "fetch_local@tiny-bert",
        ):
            (line,) = [line for line in tree.splitlines() if re.search(rf"─ {stage} ", line) and "(above)" not in line]
            assert re.search(r"run [0-9a-f]{8}", line), line
        assert re.search(r"^source tests/tiny/model +md5 \w{32}\.dir by dvc.lock; sha256 not pinned$", tree, re.MULTILINE)
    moved.write_bytes(b"something else")
    assert "DataError" in run(["python", "-m", "pipeline.cli", "trace", str(moved)], copy, expect=1)

    inside = "data/finetune/topic/model.safetensors"
    kept = (copy / inside).read_bytes()
    (copy / inside).write_bytes(kept + b" ")
    try:
        said = run(["python", "-m", "pipeline.cli", "trace", inside], copy, expect=1)
        assert f"expected data/finetune/topic, in which {inside} lies, with md5" in said
    finally:
        (copy / inside).write_bytes(kept)


def test_dvc_alone_gives_the_same_bytes_and_its_runs_are_registered(
    copy: Path, first: str, tmp_path: Path, empty_store: Path
):
    alone = copy_project(tmp_path)
    copy_store(empty_store, alone)
    shutil.copy(alone / "profiles/tiny.yaml", alone / "params.yaml")
    run(["dvc", "repro"], alone)

    def outs(folder: Path) -> dict[str, str]:
        stages = lock.locked(folder).values()
        return {p: md5 for s in stages for p, md5 in s.outs.items() if not p.startswith(TIMED)}

    assert len(outs(alone)) >= 25
    assert outs(alone) == outs(copy)

    client = MlflowClient(f"sqlite:///{alone}/mlflow.db")
    experiment = client.get_experiment_by_name("pruneonce").experiment_id
    runs = {run.data.tags["pruneonce.stage"]: run.data.tags for run in client.search_runs([experiment])}
    assert len(runs) == STAGES
    for stage in lock.locked(alone).values():
        assert json.loads(runs[stage.name]["pruneonce.outs"]) == stage.outs
    run(["python", "-m", "pipeline.cli", "register"], alone)
    assert exported(copy) in registered(alone)


def test_every_command_of_the_pages(copy: Path, first: str):
    """In order, in one shell, on the tiny profile. `make test` is not run again: it is what runs this.

    The profile of a reader's own task is saved as its page has it; its texts are the tiny ones, under other names.
    """
    commands = [line for block in blocks("bash", *IN_ORDER) for line in block.splitlines() if line != "make test"]
    assert len(commands) == 21
    (copy / "profiles/reviews.yaml").write_text(saved()["profiles/reviews.yaml"])
    rows = [line.split("\t") for line in (ROOT / "tests/tiny/text/topic-train.tsv").read_text().splitlines()]
    assert rows[0] == ["text", "label"]
    lines = ["body,stars", *(f'"{text}",{label}' for text, label in rows[1:])]
    (copy.parent / "reviews.csv").write_text("\n".join(lines) + "\n")
    script = "\n".join(commands).replace("/r8/", "/topic/")
    # The environment that runs the tests is the one `make run` would install.
    script = re.sub(r"^make run$", "make run PROFILE=tiny", script, flags=re.MULTILINE)
    script = script.replace("make run", f"make -o install run BIN={warm.programs()}")
    if not (copy / ".venv").exists():
        (copy / ".venv").symlink_to(sys.prefix)
    identity = "git config user.name t; git config user.email t@localhost; git config commit.gpgsign false"
    commit = f"{identity}; git add -A; git commit -qm results || true"
    output = run(["bash", "-euo", "pipefail", "-c", f"{commit}\n{script}"], copy)
    assert re.search(r"^\| workspace +\| [01]\S* +\| 0\.9 +\|$", output, re.MULTILINE)  # dvc exp show
    assert re.search(r"^data/metrics/report.json +[01]", output, re.MULTILINE)  # dvc metrics show
    assert '"prepare_teacher" -> "sparsify";' in output  # dvc dag
    assert "https://cdn." in (copy / "dvc_plots/index.html").read_text()  # dvc plots show: blank without a network
    assert "└─ export@topic" in output  # pruneonce trace
    assert "prunable: 84.93 M in the layers" in output  # pruneonce plan
    assert (copy / "data/export/topic/int8.packed").stat().st_size < (copy / "data/export/topic/copy.onnx").stat().st_size
    assert re.search(r"^\w+\t[01]\.\d+\toil prices rose in the gulf today$", output, re.MULTILINE)  # pruneonce predict
    assert len(re.findall(r'^\{"label": ', output, re.MULTILINE)) == 2
    table = json.loads((copy / "data/report/report.json").read_text())
    # `dvc exp run` set it to 0.9, which was committed, `make run SET=` to 0.8, a profile upon the commit to 0.9 again;
    # rounding adds zeros to the int8 file.
    assert re.search(r"topic +sparse .* (79\.9|80\.0)\d% ", output)
    assert {row["task"] for row in table} == {"topic", "reviews"}
    assert [0.89 < row["sparsity"] < 0.94 for row in table] == 2 * [False, True, True]

    undo = [code for page in IN_ORDER for code in inline(page) if code.startswith(("git checkout ", "git clean "))]
    run(["bash", "-euc", "\n".join(undo)], copy)
    assert len(undo) >= 2
    assert run(["git", "status", "--porcelain"], copy) == ""
    # The folders of another profile's tasks are still there, and DVC counts them: docs/profiles.md.
    ran = {stage for stage, done in outcomes(compress(copy, "--profile", "tiny")).items() if done == "ran"}
    assert ran <= {"report", "prepare_corpus"}


def test_from_text_to_an_answer_as_the_page_has_it(copy: Path, first: str, tmp_path: Path):
    """With the packed file, and of the teacher's folder its tokenizer and its configuration."""
    (program,) = [block for block in blocks("python", "docs/deployment.md") if "pruneonce.load" in block]
    (tmp_path / "data/teach_task/topic").mkdir(parents=True)
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(copy / "data/teach_task/topic" / name, tmp_path / "data/teach_task/topic")
    (tmp_path / "data/export/topic").mkdir(parents=True)
    packed = str(tmp_path / "data/export/topic/int8.packed")
    run(["python", "-m", "pruneonce.command", "pack", "data/export/topic/int8.onnx", packed], copy)
    assert len(list(tmp_path.rglob("*.*"))) == 3, "two json files and the model"
    assert program.count("/r8") == 2
    done = run(["python", "-W", "error", "-c", program.replace("/r8", "/topic")], tmp_path)
    labels = json.loads((copy / "data/teach_task/topic/config.json").read_text())["id2label"].values()
    answers = re.findall(r"'([^']+)'", done.splitlines()[-1])
    assert len(answers) == 2
    assert set(answers) <= set(labels)


def test_a_second_run_in_the_same_folder_is_refused(copy: Path, first: str):
    (copy / ".pruneonce").mkdir(exist_ok=True)
    with FileLock(copy / ".pruneonce/run.lock"):
        output = compress(copy, expect=1)
    assert "AlreadyRunning: expected no other run in this folder" in output


def test_params_that_are_not_valid_are_one_line_before_anything_starts(copy: Path, first: str):
    params = copy / "params.yaml"
    before = params.read_text()
    params.write_text(f"{before}\nfetch_local:\n  more: {{path: x, members: {{train.csv: .}}, sha256: null}}\n")
    output = compress(copy, expect=1)
    params.write_text(before)
    assert len(output.strip().splitlines()) == 1, output
    assert output.startswith("\nConfigError: ")
    assert "fetch_local" in output


def test_rows_that_the_model_has_no_positions_for_are_an_error_before_anything_is_computed(copy: Path, first: str):
    """Latency is the last thing that is measured. Also where the sources are yet to be fetched: it is asked after that."""
    shutil.copy(copy / "profiles/tiny.yaml", copy / "params.yaml")
    before = lock.locked(copy)
    output = compress(copy, "--set", "evaluate.latency_tokens=65", "--set", "common.seed=2", expect=1)
    assert "ConfigError: expected evaluate.latency_tokens of at most 64, the positions of tiny-bert, found 65" in output
    assert output.count("ConfigError") == 1  # Prefect has its say four times
    assert set(outcomes(output)) == {"fetch_local@corpus", "fetch_local@tiny-bert", "fetch_local@topic"}
    assert lock.locked(copy) == before
    shutil.copy(copy / "profiles/tiny.yaml", copy / "params.yaml")


def test_ctrl_c_keeps_what_was_finished(copy: Path, first: str):
    before = lock.locked(copy)
    command = shlex.join([sys.executable, "-m", "flows.compress", "--set", "sparsify.steps=4000"])
    log = copy / ".pruneonce/interrupted.log"
    env = environment(copy, prefect_home(copy), cold=True) | ALONE  # Ctrl-C reaches a server of the flow's own, too
    with started(command, cwd=copy, env=env, log=log) as process:
        wait_for("a training step", lambda: "tokens/s" in log.read_text(), seconds=180, log=log)
        os.killpg(process.pid, signal.SIGINT)
        try:
            assert process.wait(90) == 130
        except subprocess.TimeoutExpired:
            pytest.fail(f"it did not end\n{log.read_text()[-5000:]}")
    assert "stopped by Ctrl-C" in log.read_text(), log.read_text()[-3000:]
    assert lock.locked(copy) == before
