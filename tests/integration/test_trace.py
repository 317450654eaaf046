"""What `pruneonce trace` names had a part in the file."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from pipeline import hashing
from pipeline.lineage import trace
from pipeline.lineage.facts import Facts
from pipeline.lineage.graph import Node
from pipeline.lineage.history import Version
from pipeline.tracking import lock
from pruneonce.errors import DataError


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def entry(deps: dict[str, str], outs: dict[str, str]) -> dict[str, object]:
    listed = {
        kind: [{"path": path, "md5": value} for path, value in paths.items()]
        for kind, paths in (("deps", deps), ("outs", outs))
    }
    return {"cmd": "x", **listed}


@pytest.fixture
def traced(tmp_path, monkeypatch):
    """The stages that a trace of `model` names, in a project of these lock entries, whose profile has source b."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trace, "gather", lambda nodes: Facts(dict.fromkeys(nodes, ())))
    Path("model").write_text("model")
    Path("params.yaml").write_text("fetch: {b: {}}\nfetch_local: {}\n")
    blocks = {name: {"foreach": f"${{{name}}}", "do": {"cmd": "x"}} for name in ("fetch", "fetch_local")}
    Path("dvc.yaml").write_text(json.dumps({"stages": {**blocks, "corpus": {"cmd": "x"}, "sparsify": {"cmd": "x"}}}))

    def traced_by(stages: dict[str, dict[str, object]]) -> tuple[list[str], list[str]]:
        Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}))
        lines = list(trace.full("model"))
        named = [re.split("─ ", line)[1] for line in lines if "─ " in line]
        return named, [line.strip(" │") for line in lines if "no lock file has" in line]

    return traced_by


STAGES = {
    "fetch@a": entry({}, {"data/raw/a": md5("a")}),
    "fetch@b": entry({}, {"data/raw/b": md5("b")}),
    "corpus": entry({"data/raw": md5("raw")}, {"tokens": md5("tokens")}),
    "sparsify": entry({"tokens": md5("tokens"), "data/raw/b": md5("b")}, {"model": md5("model")}),
}


def test_a_source_of_a_former_profile_has_no_part_in_a_folder_that_many_write(traced):
    assert lock.locked() == {}
    named, gone = traced(STAGES)
    assert named == ["sparsify", "corpus", "fetch@b", "fetch@b  (above)"]
    assert gone == []


def test_of_two_that_wrote_the_same_path_the_one_that_wrote_these_bytes(traced):
    """A source that was a local one before: its entry stands in dvc.lock still."""
    former = {"fetch_local@b": entry({}, {"data/raw/b": md5("former b")})}
    assert traced({**STAGES, **former})[0] == ["sparsify", "corpus", "fetch@b", "fetch@b  (above)"]
    same = {"fetch_local@b": entry({}, {"data/raw/b": md5("b")})}
    assert traced({**STAGES, **same})[0] == ["sparsify", "corpus", "fetch@b", "fetch@b  (above)"]


def test_a_file_of_a_former_profile_is_still_traced_to_what_made_it(traced):
    former = {**STAGES, "sparsify": entry({"data/raw/a": md5("a")}, {"model": md5("model")})}
    assert traced(former)[0] == ["sparsify", "fetch@a"]


def test_what_was_computed_again_since_is_not_named_and_said(traced):
    newer = {**STAGES, "corpus": entry({"data/raw": md5("raw")}, {"tokens": md5("others")})}
    named, gone = traced(newer)
    assert named == ["sparsify", "fetch@b"]
    assert gone == ["made by a run that no lock file has"]


def test_a_file_in_an_out_is_known_by_its_name_where_dvc_links_it(traced, tmp_path):
    """With `cache.type` symlink the file's own place is DVC's cache."""
    (tmp_path / "cache").mkdir()
    Path("cache/1").write_text("one")
    Path("folder").mkdir()
    Path("folder/one").symlink_to(tmp_path / "cache/1")
    traced({"sparsify": entry({}, {"model": md5("model"), "folder": hashing.file_md5(Path("folder"))})})
    for name in ("folder/one", "folder/../folder/one", str(tmp_path / "folder/one")):
        assert next(trace.full(name)) == f"{name}  md5 {md5('one')}"
    Path("by-another-name").symlink_to(tmp_path / "folder")
    assert next(trace.full("by-another-name/one")).endswith(md5("one"))


def test_the_numbers_of_an_older_version_are_in_the_cache_that_dvc_is_set_to(traced, tmp_path):
    scores = json.dumps({"int8": {"score": 0.9}})
    digest = md5(scores)
    kept = tmp_path / "elsewhere/files/md5" / digest[:2] / digest[2:]
    kept.parent.mkdir(parents=True)
    kept.write_text(scores)
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text(f"[cache]\n    dir = {tmp_path}/elsewhere\n")
    older = lock.Stage("evaluate@a", {}, {"data/metrics/evaluate/a.json": digest}, {})
    assert Facts().numbers(Node(older, Version("", {}, frozenset()))) == {"int8.score": 0.9}


def test_a_loop_of_links_is_one_line(traced):
    traced(STAGES)
    Path("loop").symlink_to("loop")
    with pytest.raises(DataError, match="expected a file at loop, found none"):
        list(trace.full("loop"))
