"""trace, verify and why on a project of five stages with a history of two models, and on the tiny pipeline."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from pipeline import cli, hashing, stopping
from pipeline.lineage import places, trace, verify, why
from pipeline.params.reading import read_yaml
from pipeline.tracking import flow_runs, lock, runs
from pipeline.tracking.store import store
from pruneonce.deployment import packing, provenance
from pruneonce.errors import DataError, PackError, PruneOnceError
from tests.conftest import commit

MODEL = "data/export/topic/int8.onnx"
PIPELINE = """
stages:
  fetch_local:
    foreach: ${fetch_local}
    do:
      cmd: mkdir -p data/raw/${key} && cp ${item.path} data/raw/${key}/train.txt
      deps: ["${item.path}", stages/fetch_local.py]
      params: ["fetch_local.${key}"]
      outs: ["data/raw/${key}"]
  sparsify:
    cmd: mkdir -p data/sparsify data/metrics && cp data/raw/corpus/* data/sparsify && cp numbers data/metrics/sparsify.json
    deps: [data/raw/corpus, stages/sparsify.py, pruneonce/sparsity]
    params: [sparsify]
    outs: [data/sparsify]
    metrics: [data/metrics/sparsify.json: {cache: false}]
  export:
    foreach: ${tasks}
    do:
      cmd: mkdir -p data/export/${key} && cp made.onnx data/export/${key}/int8.onnx
      deps: [data/sparsify, stages/export.py]
      params: [export]
      outs: ["data/export/${key}/int8.onnx"]
  evaluate:
    foreach: ${tasks}
    do:
      cmd: mkdir -p data/metrics/evaluate && cp scores.json data/metrics/evaluate/${key}.json
      deps: ["data/export/${key}/int8.onnx", stages/evaluate.py]
      outs: ["data/metrics/evaluate/${key}.json"]
"""
SCORES = {"int8": {"score": 0.9375, "sparsity": 0.85, "file_bytes": 1234}}


@dataclass
class Made:
    """The project, its two commits, and what was deployed of the first one."""

    folder: Path
    commits: tuple[str, str]
    md5s: tuple[str, str]
    onnx: Path
    packed: Path


def write(name: str, text: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)


def export(source: Path, text: str) -> None:
    """An ONNX file that says what `export` will have read, at made.onnx. text: in the one file of data/sparsify."""
    shutil.copy(source, "made.onnx")
    listing = json.dumps([{"md5": hashlib.md5(text.encode()).hexdigest(), "relpath": "train.txt"}])
    sparse = f"{hashlib.md5(listing.encode()).hexdigest()}.dir"
    deps = {"data/sparsify": sparse}
    score = {"metric": "accuracy", "split": "validation", "value": 0.9}
    about = {"task": "topic", "variant": "int8", "sparsity": 0.85, "pattern": "unstructured", "score": score, "deps": deps}
    provenance.write(Path("made.onnx"), about, None)


@pytest.fixture(scope="module")
def made(tmp_path_factory, int8_onnx) -> Made:
    folder, deployed = tmp_path_factory.mktemp("lineage") / "project", tmp_path_factory.mktemp("deployed")
    folder.mkdir()
    before = Path.cwd()
    os.chdir(folder)
    try:
        commits, md5s = [], []
        write("dvc.yaml", PIPELINE)
        write("scores.json", json.dumps(SCORES))
        for name in ("fetch_local", "sparsify", "export", "evaluate"):
            write(f"stages/{name}.py", f"# {name}\n")
        write("pruneonce/sparsity/masks.py", "one = 1\ntwo = 2\n")
        write(".gitignore", "/made.onnx\n/data/\n!/data/metrics\n")
        commit(folder)
        Repo.init().close()
        for text in ("a corpus", "another corpus"):
            write("corpus.txt", text)
            write("numbers", json.dumps({"sparsity": 0.85, "held_out_loss": float(len(text))}))
            source = {
                "path": "corpus.txt",
                "members": {"train.txt": "."},
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
            }
            parameters = {"fetch_local": {"corpus": source}, "sparsify": {"sparsity": 0.85, "steps": 10}}
            write("params.yaml", json.dumps({**parameters, "export": {"bits": 8}, "tasks": {"topic": {}}}))
            export(int8_onnx.path, text)
            with Repo() as repo:
                repo.reproduce("evaluate@topic")
            commit(folder)
            commits.append(subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip())
            md5s.append(hashing.file_md5(Path(MODEL)))
            if len(commits) == 1:
                shutil.copy(MODEL, deployed / "int8.onnx")
                packing.pack(deployed / "int8.onnx", deployed / "int8.packed")
    finally:
        os.chdir(before)
    return Made(folder, tuple(commits), tuple(md5s), deployed / "int8.onnx", deployed / "int8.packed")


@pytest.fixture
def here(made: Made, monkeypatch) -> Made:
    """It, to be read."""
    monkeypatch.chdir(made.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return made


@pytest.fixture
def own(here: Made, tmp_path, monkeypatch) -> Made:
    """A copy of it, to be changed."""
    shutil.copytree(here.folder, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(tmp_path / "project")
    return here


def test_a_file_of_dvc_lock_is_a_tree_down_to_what_pins_its_source(here):
    lines = list(trace.short(MODEL))
    sha256 = hashlib.sha256(b"another corpus").hexdigest()
    assert lines == [
        f"{MODEL}  md5 {here.md5s[1]}",
        "scored 0.9375 on the test split, 85.0% zeros, 1,234 bytes (evaluate@topic)",
        "└─ export@topic",
        "   └─ sparsify               held-out loss 14.000, 85.0% zeros",
        "      └─ fetch_local@corpus  corpus.txt",
        "",
        f"source corpus.txt  sha256 {sha256}",
        "(no MLflow store at sqlite:///mlflow.db: its runs are not shown)",
    ]


@pytest.mark.parametrize("asked", ["onnx", "packed", "md5", "prefix", "commit", "short commit", "path of a commit"])
def test_what_an_older_commit_made_is_found_by_whatever_names_it(here, asked):
    """dvc.lock does not name the model any more."""
    names = {
        "onnx": str(here.onnx),
        "packed": str(here.packed),
        "md5": here.md5s[0],
        "prefix": here.md5s[0][:7],
        "commit": here.commits[0],
        "short commit": here.commits[0][:8],
        "path of a commit": f"HEAD~1:{MODEL}",
    }
    assert here.md5s[0] not in Path("dvc.lock").read_text()
    lines = list(trace.short(names[asked]))
    text = "\n".join(lines)
    assert here.md5s[0] in text
    assert f"commit {here.commits[0][:9]} (" in text
    assert "   └─ sparsify               held-out loss 8.000, 85.0% zeros" in lines, "of the git history, not of this folder"
    assert f"source corpus.txt  sha256 {hashlib.sha256(b'a corpus').hexdigest()}" in lines


def test_a_model_that_no_lock_file_has_says_itself_where_it_came_from(own, tmp_path):
    proto = onnx.load(own.onnx)
    proto.doc_string = "built elsewhere"
    onnx.save(proto, tmp_path / "other.onnx")
    text = "\n".join(trace.short(str(tmp_path / "other.onnx")))
    assert "no lock file names this md5: below is what the file says of itself" in text
    assert "a int8 model of task topic, 85.0% zeros (unstructured), validation accuracy 0.9000" in text
    assert re.search(r"└─ sparsify +held-out loss 8.000, 85.0% zeros, of commit", text), "its deps are looked up"
    with pytest.raises(DataError, match=r"other\.onnx \(no lock file has this md5"):
        verify.check(list(verify.links(str(tmp_path / "other.onnx"))))
    Path("dvc.lock").unlink()
    shutil.rmtree(".git")
    lines = list(trace.short(str(tmp_path / "other.onnx")))
    assert any("data/sparsify  made by a run that no lock file has" in line for line in lines)


def test_forward_leads_to_the_models_of_all_commits(here):
    lines = list(trace.forward("data/raw/corpus", full=False))
    assert lines[1:] == [
        "└─ sparsify  data/sparsify",
        f"   └─ export@topic  {MODEL}",
        "      └─ evaluate@topic",
        "(no MLflow store at sqlite:///mlflow.db: registered versions are not shown)",
    ]

    older = "\n".join(trace.forward(f"{here.commits[0]}:data/raw/corpus", full=False))
    assert f"earlier     {MODEL}  md5 {here.md5s[0]}  in commit {here.commits[0][:9]}" in older
    made = trace.made_from(MODEL)["made"][0]
    assert [stage["stage"] for stage in made["stages"]] == ["evaluate@topic"]


def test_json_and_mermaid_hold_the_same_graph(here):
    document = trace.document(MODEL)
    assert [stage["id"] for stage in document["stages"]] == ["export@topic", "sparsify", "fetch_local@corpus"]
    assert document["subjects"][0]["made_by"] == ["export@topic"]
    sparsify = document["stages"][1]
    assert [dep["made_by"] for dep in sparsify["deps"] if not dep["code"]] == [["fetch_local@corpus"]]
    assert sparsify["results"] == {"sparsity": 0.85, "held_out_loss": 14.0}
    assert document["stages"][2]["source"]["what"] == "corpus.txt"
    json.dumps(document)
    graph = list(trace.mermaid(MODEL))
    assert (graph[0], graph[1], graph[-1]) == ("```mermaid", "graph TD", "```")
    assert sorted(line.strip() for line in graph if "-->" in line) == ["s0 --> f0", "s1 --> s0", "s2 --> s1"]
    assert list(trace.forward_mermaid("data/sparsify"))[-2].strip() == "s0 --> s1"


# What is asked -> the message.
UNKNOWN = {
    "nowhere.onnx": "expected a file at nowhere.onnx, found none; nor is it an out of dvc.lock, a commit of git",
    "0123456789": r"beginning of an md5 in a lock file or of an MLflow run \(at least 6 digits\) \(no MLflow store at",
    "models:/pruneonce-topic/1": "expected an MLflow store with models:/pruneonce-topic/1, found none at sqlite:///mlflow.db",
    "models:/x": "expected models:/NAME/VERSION or models:/NAME@ALIAS, found 'models:/x'",
    "nothing:data": "expected a commit of git before the `:`, found 'nothing'",
    "HEAD:data/none": "expected an out of commit .*, found 'data/none'. Outs are e.g. data/export/topic/int8.onnx",
    "HEAD~2": "expected a dvc.lock with stages in commit .* found none that can be read",
    "corpus.txt": r"found md5 \w+, which no stage did by dvc.lock, nor by the lock files of 2 commits, nor by the registry",
}


@pytest.mark.parametrize("asked", UNKNOWN)
def test_what_nothing_knows_is_one_line_that_says_what_was_tried(here, asked):
    with pytest.raises(DataError, match=UNKNOWN[asked]):
        list(trace.short(asked))


def test_digits_that_several_begin_with_are_not_guessed(own):
    digits = own.md5s[1][:6]
    text = Path("dvc.lock").read_text()
    evaluated = hashing.file_md5(Path("data/metrics/evaluate/topic.json"))
    Path("dvc.lock").write_text(text.replace(evaluated, digits + evaluated[6:]))
    with pytest.raises(DataError, match=f"found 2 for {digits}: md5 {digits}"):
        list(trace.short(digits))


def test_a_packed_file_that_is_damaged_is_named(own, tmp_path):
    data = bytearray(own.packed.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.packed").write_bytes(data)
    for ask in (trace.short, verify.links):
        with pytest.raises(PackError, match=r"expected a whole packed file, .*bad\.packed"):
            list(ask(str(tmp_path / "bad.packed")))


def test_without_a_lock_file_there_is_nothing_to_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    with pytest.raises(DataError, match=r"expected stages in dvc\.lock, found none\. Run the pipeline first"):
        list(trace.short("file"))


@pytest.fixture
def tracked(own: Made, tracking_uri, monkeypatch) -> tuple[str, str]:
    """A store with a run of the older export, by a flow, and its registered version. Returns both ids."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    for name in (stopping.RAN, stopping.PARENT):
        monkeypatch.delenv(name, raising=False)
    flow = flow_runs.start_flow("lineage", {})
    monkeypatch.setenv(stopping.PARENT, flow)
    deps = {"data/sparsify": hashlib.md5(b"none").hexdigest() + ".dir"}
    with runs.stage_run("export@topic", {}, deps) as run:
        run.log_numbers("result", {"seconds": 12.0})
        run.log_outs({MODEL: own.md5s[0]})
    with store() as (client, _):
        client.log_artifact(run.run_id, str(own.onnx), "model")
        if not client.search_registered_models("name = 'lineage'"):
            client.create_registered_model("lineage")
        source = f"runs:/{run.run_id}/model"
        tags = {"md5": own.md5s[0], "path": MODEL}
        version = client.create_model_version("lineage", source, run_id=run.run_id, tags=tags).version
        client.set_registered_model_alias("lineage", "champion", version)
    return run.run_id, flow


def test_a_run_a_flow_and_a_registered_version_lead_to_their_files(tracked, own):
    run_id, flow = tracked
    said = {name: list(trace.short(name)) for name in (run_id, run_id[:10], flow, "models:/lineage@champion")}
    for lines in said.values():
        assert any(re.search(rf"└─ export@topic +run {run_id[:8]}", line) for line in lines), lines
        assert any(re.search(r"└─ sparsify +held-out loss 8.000", line) for line in lines), "by the older lock file"
    assert said[run_id][:2] == [
        f"MLflow run {run_id} of export@topic",
        f"as commit {places.git.dated(own.commits[0])} has it",
    ]
    assert said[flow][0] == f"MLflow run {flow}, a flow of 1 stages that ran"
    first = said["models:/lineage@champion"][0]
    assert re.fullmatch(rf"models:/lineage/\d+ @champion  md5 {own.md5s[0]}", first)
    forward = list(trace.forward(str(own.packed), full=False))
    assert any(re.match(rf"registered  models:/lineage/\d+ @champion  md5 {own.md5s[0]}", line) for line in forward)
    assert why.with_costs(found := {"export@topic": why.Reason("export@topic", [], [])}) == ""
    assert (found["export@topic"].seconds, found["export@topic"].run) == (12.0, run_id)
    with pytest.raises(DataError, match=r"expected models:/lineage/999 in MLflow at .*, found none. It has: .*lineage"):
        list(trace.short("models:/lineage/999"))


def test_the_bytes_of_a_registered_version_are_verified(tracked, own):
    links, said = verified("models:/lineage@champion")
    assert said == ""
    assert [link.state for link in links if link.kind == "file"] == ["holds"]
    with store() as (client, _):
        kept = client.get_run(tracked[0]).info.artifact_uri.removeprefix("file://")
    flip(Path(kept) / "model/int8.onnx")
    _, said = verified("models:/lineage@champion")
    assert re.search(r"models:/lineage/\d+ @champion: int8.onnx \(in MLflow: md5", said)


def test_a_run_whose_outs_are_in_no_lock_file_is_told_by_itself(tracked, own):
    deps = {"data/sparsify": lock.locked()["sparsify"].outs["data/sparsify"]}
    with runs.stage_run("export@topic", {}, deps) as run:
        run.log_outs({MODEL: "0" * 32})
    lines = list(trace.short(run.run_id))
    assert lines[1] == "no lock file has these outs: below is what the run says"
    assert any(re.search(r"└─ sparsify +held-out loss 14.000", line) for line in lines)


def test_a_store_that_does_not_answer_is_said_and_the_tree_is_there(own, monkeypatch, tmp_path):
    (tmp_path / "mlflow.db").write_text("no database, but a text of some length\n" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    lines = list(trace.short(MODEL))
    assert any("sparsify" in line for line in lines)
    assert lines[-1].startswith("(MLflow's runs are unknown: expected an MLflow database")
    with pytest.raises(DataError, match=r"\(MLflow was not asked: expected an MLflow database"):
        list(trace.short("0123456789abcdef"))
    edit(lambda d: d["sparsify"].update(sparsity=0.9))
    assert why.with_costs(why.reasons()).startswith("expected an MLflow database")


def verified(asked: str = MODEL) -> tuple[list[verify.Link], str]:
    """The links, and what is said of those that differ."""
    links = list(verify.links(asked))
    try:
        verify.check(links)
    except DataError as error:
        return links, str(error)
    return links, ""


def test_everything_holds_where_nothing_was_touched(here):
    links, said = verified()
    assert said == ""
    assert {link.state for link in links if link.kind != "source"} == {"holds"}
    kinds = {(link.kind, link.path) for link in links}
    assert {("file", MODEL), ("about", "data/sparsify"), ("out", "data/raw/corpus"), ("dep", "corpus.txt")} <= kinds
    assert {("code", "pruneonce/sparsity"), ("source", "corpus.txt")} <= kinds
    assert [link.state for link in links if link.kind == "source"] == ["holds"], "the file itself is here"
    lines = list(verify.lines(links, full=False))
    assert "sparsify            holds: 2 outs, 2 code files" in lines
    assert lines[-1].startswith(f"{len(links)} checksums hold, 0 differ")
    links, said = verified(str(here.packed))
    assert said == "", "code and data of an older commit need not be in this folder"
    assert ("dep", "corpus.txt", "not here") in {(link.kind, link.path, link.state) for link in links}


def flip(path: Path) -> None:
    """Change one byte."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.unlink()  # the cache may share it
    path.write_bytes(data)


def stored(md5: str) -> Path:
    return Path(".dvc/cache/files/md5") / md5[:2] / md5[2:]


# What is changed by a byte -> what the error names.
TAMPERED = {
    "the model": (lambda made: Path(MODEL), MODEL),
    "an out in the folder": (lambda made: Path("data/sparsify/train.txt"), r"data/sparsify \(in this folder: md5"),
    "a metric": (lambda made: Path("data/metrics/sparsify.json"), r"data/metrics/sparsify.json \(in this folder"),
    "an object of the cache": (lambda made: stored(made.md5s[1]), r"int8.onnx \(in DVC's cache: .dvc/cache/files/md5"),
    "a file of a folder in the cache": (
        lambda made: stored(hashlib.md5(b"another corpus").hexdigest()),
        r"data/raw/corpus \(in DVC's cache",
    ),
    "the listing of a folder in the cache": (
        lambda made: stored(lock.locked()["sparsify"].outs["data/sparsify"]),
        r"data/sparsify \(in DVC's cache",
    ),
    "code": (
        lambda made: Path("stages/export.py"),
        r"stages/export.py \(differs in the workspace; as recorded in commit \w{9}\)",
    ),
    "code in a folder": (lambda made: Path("pruneonce/sparsity/masks.py"), r"pruneonce/sparsity \(differs in the workspace"),
    "the source": (lambda made: Path("corpus.txt"), r"corpus.txt \(in this folder"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_byte_that_changed_anywhere_fails_by_name(own, what):
    find, named = TAMPERED[what]
    flip(find(own))
    with pytest.raises(DataError, match=named):
        verify.check(list(verify.links(MODEL)))


def test_the_model_that_was_deployed_is_told_from_one_that_was_changed(own, tmp_path, monkeypatch, capsys):
    shutil.copy(own.onnx, tmp_path / "deployed.onnx")
    flip(tmp_path / "deployed.onnx")
    monkeypatch.setattr(sys, "argv", ["pruneonce", "verify", str(tmp_path / "deployed.onnx")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert re.match("DataError: expected .*(no lock file has this md5|which no stage did)", str(ended.value.code))


def test_what_the_file_says_of_itself_is_compared_with_the_lock_file(own):
    """Of the data that its export read; a file does not say its code."""
    document = read_yaml(Path("dvc.lock"))
    (dep,) = [dep for dep in document["stages"]["export@topic"]["deps"] if dep["path"] == "data/sparsify"]
    md5, dep["md5"] = dep["md5"], f"{'0' * 32}.dir"
    with Path("dvc.lock").open("w") as file:
        YAML().dump(document, file)
    with pytest.raises(DataError, match=rf"data/sparsify \(the file says {md5} of itself\)"):
        verify.check(list(verify.links(MODEL)))


def test_a_remote_in_a_folder_is_read_and_another_one_asked_by_name(own, tmp_path, monkeypatch):
    shutil.copytree(".dvc/cache", tmp_path / "remote")
    shutil.rmtree(".dvc/cache")
    shutil.rmtree("data/sparsify")
    config = Path(".dvc/config")
    config.write_text(f"[core]\n    remote = far\n['remote \"far\"']\n    url = {tmp_path}/remote\n")

    def out() -> verify.Link:
        (link,) = [link for link in verify.links(MODEL) if (link.kind, link.path) == ("out", "data/sparsify")]
        return link

    assert (out().state, out().note) == ("holds", "remote far")
    flip(
        tmp_path
        / "remote/files/md5"
        / stored(hashlib.md5(b"another corpus").hexdigest()).relative_to(".dvc/cache/files/md5")
    )
    assert out().state == "differs"
    config.write_text("[core]\n    remote = far\n['remote \"far\"']\n    url = s3://bucket/store\n")
    monkeypatch.setattr(places, "_absent", lambda project: {"data/raw/corpus": "missing"})
    assert (out().state, out().note) == ("by name", "remote far")


def test_a_local_source_that_was_changed_fails_by_its_pin(own):
    text = Path("params.yaml").read_text()
    assert "corpus.txt" in text
    Path("corpus.txt").write_text("a changed corpus")
    links = [link for link in verify.links(MODEL) if link.kind == "source"]
    assert [(link.state, link.path) for link in links] == [("differs", "corpus.txt")]


def edit(change: Callable[[dict], None]) -> None:
    document = json.loads(Path("params.yaml").read_text())
    change(document)
    Path("params.yaml").write_text(json.dumps(document))


# An edit -> (the stage that would run, the reasons).
EDITS = {
    "a parameter": (
        lambda: edit(lambda d: d["sparsify"].update(sparsity=0.9)),
        "sparsify",
        ["parameter sparsify.sparsity: 0.85 -> 0.9"],
    ),
    "a parameter is new, another gone": (
        lambda: edit(lambda d: d["sparsify"].update(pattern=None) or d["sparsify"].pop("steps")),
        "sparsify",
        ["parameter sparsify.steps is gone; it was 10", "parameter sparsify.pattern is new: null"],
    ),
    "a section is gone": (
        lambda: edit(lambda d: d.pop("export")),
        "export@topic",
        ["parameter export is gone; it was {'bits': 8}"],
    ),
    "code": (
        lambda: write("stages/export.py", "# export\n# more\n# and more\n"),
        "export@topic",
        [r"code stages/export.py: 2 lines changed since commit \w{9} \(.*\)"],
    ),
    "code in a folder": (
        lambda: write("pruneonce/sparsity/masks.py", "one = 1\n"),
        "sparsify",
        [r"code pruneonce/sparsity: 1 line changed since commit \w{9} \(.*\)"],
    ),
    "data that a stage wrote": (
        lambda: flip(Path("data/sparsify/train.txt")),
        "export@topic",
        [r"data data/sparsify, which sparsify wrote, changed: \w{32}.dir -> \w{32}.dir"],
    ),
    "an out that is gone": (
        lambda: shutil.rmtree("data/raw/corpus"),
        "fetch_local@corpus",
        ["out data/raw/corpus is not here; DVC takes it from its cache if that has it"],
    ),
    "a command": (
        lambda: write("dvc.yaml", PIPELINE.replace("cp made.onnx", "cp -f made.onnx")),
        "export@topic",
        ["its command in dvc.yaml changed"],
    ),
    "a dep": (
        lambda: write("dvc.yaml", PIPELINE.replace("stages/evaluate.py]", "stages/evaluate.py, scores.json]")),
        "evaluate@topic",
        ["code scores.json is a new dep"],
    ),
    "the cache": (
        lambda: stored(hashing.file_md5(Path(MODEL))).unlink(),
        "export@topic",
        [f"out {MODEL} is not in DVC's cache"],
    ),
    "no entry": (lambda: write("dvc.lock", "schema: '2.0'\nstages: {}\n"), "sparsify", ["its first run: .*"]),
}


def said_by_dvc() -> set[str]:
    """The stages that are not as in dvc.lock."""
    with Repo() as repo:
        return set(repo.status())


@pytest.mark.parametrize("what", EDITS)
def test_why_names_what_changed_and_dvc_agrees(own, what):
    change, stage, expected = EDITS[what]
    assert (why.reasons(), said_by_dvc()) == ({}, set())
    change()
    reason = why.of(stage)
    assert len(reason.words) == len(expected)
    assert all(re.fullmatch(line, word) for line, word in zip(expected, reason.words, strict=True)), reason.words
    found = why.reasons()
    assert {name for name, each in found.items() if each.changes} == said_by_dvc()
    assert list(found) == [name for name in lock.locked() or found if name in found] or what == "no entry"
    text = "\n".join(why.page(reason, ""))
    assert text.startswith(f"{stage} would run:\n  {reason.words[0]}")


def test_a_stage_below_would_run_only_if_what_is_above_changes_its_outs(own):
    edit(lambda d: d["sparsify"].update(sparsity=0.9))
    found = why.reasons()
    assert [(name, each.upstream) for name, each in found.items()] == [
        ("sparsify", []),
        ("export@topic", ["sparsify"]),
        ("evaluate@topic", ["export@topic"]),
    ]
    assert next(why.page(found["export@topic"], "")) == (
        "export@topic is as in dvc.lock. It would run if sparsify, which would run before, changes its outs."
    )
    assert list(why.lines(found, ""))[-1] == "1 would run, 2 may, if what runs before changes its outs."
    document = why.document(found, "")["stages"]
    assert [stage["runs"] for stage in document] == ["yes", *["if an upstream stage changes its outs"] * 2]
    assert document[0]["changes"][0]["old"] == {"sparsity": 0.85, "steps": 10}


def test_why_of_what_is_no_stage_and_of_what_would_not_run(here, monkeypatch, capsys):
    with pytest.raises(DataError, match=r"expected a stage of dvc.yaml, found 'export@other'. There is e.g. export@topic\."):
        why.of("export@other")
    for words, said in (([], "nothing would run: all is as in dvc.lock\n"), (["sparsify"], "sparsify would not run: ")):
        monkeypatch.setattr(sys, "argv", ["pruneonce", "why", *words])
        cli.main()
        assert capsys.readouterr().out.startswith(said)
    monkeypatch.setattr(sys, "argv", ["pruneonce", "why", "--json"])
    cli.main()
    assert json.loads(capsys.readouterr().out)["stages"] == []


def test_a_template_that_params_yaml_does_not_fill_is_one_line(own):
    edit(lambda d: d["fetch_local"]["corpus"].pop("path"))
    with pytest.raises(PruneOnceError, match=r"expected item\.path in params.yaml, for stage fetch_local@corpus"):
        why.reasons()


def test_why_agrees_with_dvc_on_the_whole_pipeline(computed, monkeypatch):
    monkeypatch.chdir(computed.folder)
    with Repo() as repo:
        repo.commit(force=True)
    assert (why.reasons(), said_by_dvc()) == ({}, set())
    assert len(lock.current()) >= 14
    computed.edit(lambda document: document["finetune"].update(epochs=7) or document["common"].update(seed=2))
    with Path("pruneonce/tasks/scores.py").open("a") as file:
        file.write("# more\n")
    shutil.rmtree("data/prepare_corpus/tokens")
    Path("data/plots/sparsify.csv").unlink()
    found = why.reasons()
    direct = {name for name, reason in found.items() if reason.changes}
    assert direct == said_by_dvc()
    assert {"finetune@topic", "teach_task@topic", "sparsify", "evaluate@topic", "report"} <= direct
    assert "parameter common.seed: 1 -> 2" in found["finetune@topic"].words
    assert any(
        word.startswith("parameter finetune.epochs: ") and word.endswith(" -> 7") for word in found["finetune@topic"].words
    )
    assert any(
        "code pruneonce/tasks" in word and "1 line changed since commit" in word for word in found["evaluate@topic"].words
    )
