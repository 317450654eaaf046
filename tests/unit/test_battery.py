"""The battery: what a row of a table says is true of the texts that it was made of, and what a run found is kept."""

import csv
import hashlib
import json
import random
from collections import Counter
from dataclasses import replace

import pytest

from pipeline import gates
from pipeline.params import document
from pipeline.params.reading import read_yaml
from pruneonce.errors import DataError
from study.battery import results, tables
from tests.conftest import ROOT
from tests.report_facts import measured

WORDS = [f"w{i}" for i in range(4000)]
MESSAGES = [(" ".join(WORDS[i * 130 : i * 130 + 30 * (1 + i % 5)]), f"group{i % 3}") for i in range(30)]
WHERE = {word: i for i, (text, _) in enumerate(MESSAGES) for word in text.split()}


def group_of(passage: str) -> str:
    return MESSAGES[WHERE[passage.split()[0]]][1]


def test_passages_are_in_order_and_of_one_length():
    found = tables.passages(" ".join(WORDS[:100]))
    assert [len(p.split()) for p in found] == [tables.WORDS] * (100 // tables.WORDS)
    assert " ".join(found).split() == WORDS[: len(found) * tables.WORDS]


def test_passages_are_of_one_message_if_the_label_says_so():
    rows = tables.same_text([text for text, _ in MESSAGES], random.Random(1))
    assert len(rows) == tables.ROWS
    assert 0.45 < Counter(row["label"] for row in rows)["yes"] / len(rows) < 0.55
    for row in rows:
        assert (WHERE[row["text"].split()[0]] == WHERE[row["other"].split()[0]]) == (row["label"] == "yes")
        assert row["text"] != row["other"]


def test_messages_are_of_one_group_if_the_label_says_so():
    rows = tables.same_group(MESSAGES, random.Random(1))
    assert {row["label"] for row in rows} == {"yes", "no"}
    for row in rows:
        assert (group_of(row["text"]) == group_of(row["other"])) == (row["label"] == "yes")


def test_similar_passages_share_words():
    rows = tables.alike(MESSAGES, random.Random(1))
    for row in rows:
        assert 0 <= row["label"] <= 5
        shared = set(row["text"].split()) & set(row["other"].split())
        assert (row["label"] > 0) == bool(shared)
    texts = [("rain on the roof " * 40, "a"), ("snow on the hill " * 40, "a")]
    same, other = (
        [row["label"] for row in tables.alike(texts, random.Random(2)) if (row["text"] == row["other"]) == equal]
        for equal in (True, False)
    )
    assert min(same) == pytest.approx(5, abs=1e-3)
    assert max(other) < 5


def test_the_marks_of_tags_and_names_are_the_labels_and_no_word_has_them():
    rows = tables.mentions(["we meet @anna and @@ben at #noon # today", "no mark here", "#"])
    assert rows == [{"text": "we meet anna and ben at noon today", "label": "O O B-NAME O B-NAME O B-TAG O"}]


def test_the_answer_stands_where_the_row_says():
    names = ["Ada", "Ben", "Cy"]
    lines = [(f"e{i // 50}", names[i % 3], " ".join(WORDS[i * 3 : i * 3 + 2 + i % 30])) for i in range(500)]
    rows = tables.speaker(lines, random.Random(1))
    assert len(rows) > 50
    for row in rows:
        (name,), (start,) = row["label"]["text"], row["label"]["answer_start"]
        line = row["context"][start:]
        assert line.startswith(f"{name}: {row['question'].removeprefix('Who says: ')}")


def test_a_line_of_another_episode_or_a_nameless_voice_is_no_context():
    lines = [("e1", "Ada", "one"), ("e1", "Ben", "two"), ("e1", "Cy", "three"), *[("e2", "Ada", w) for w in WORDS[:20]]]
    rows = tables.speaker(lines, random.Random(1))
    assert rows
    assert not any("one" in row["context"] for row in rows)
    assert tables.speaker([("e1", "All:", word) for word in WORDS[:20]], random.Random(1)) == []


def test_tables_are_files_that_a_task_can_read(tmp_path):
    rows = tables.mentions(["we meet @anna"])
    said = [{"question": "Who says: a b?", "context": "Ada: a b?", "label": {"text": ["Ada"], "answer_start": [0]}}]
    tables.write({"mentions": rows, "speaker": said}, tmp_path)
    with (tmp_path / "mentions.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == rows
    assert [json.loads(line) for line in (tmp_path / "speaker.jsonl").read_text().splitlines()] == said


def test_what_is_kept_is_a_share_of_the_dense_score_on_the_same_rows():
    answers = {"variants": {"dense": {"replicates": [0.5, 0.8, 0.8]}, "int8": {"replicates": [0.45, 0.72, 0.72]}}}
    found = results.kept({"dense": {"score": 0.8}, "int8": {"score": 0.74}}, answers, "int8")
    assert (found.score, found.percent) == (0.74, pytest.approx(92.5))
    assert (found.low, found.high) == (pytest.approx(90), pytest.approx(90)), "every draw keeps nine tenths"
    answers = {"variants": {"dense": {"replicates": [1.0] * 1001}, "int8": {"replicates": [i / 1000 for i in range(1001)]}}}
    found = results.kept({"dense": {"score": 1.0}, "int8": {"score": 0.5}}, answers, "int8")
    assert (found.low, found.high) == (pytest.approx(2.5), pytest.approx(97.5)), "of 95 % of the draws"


@pytest.mark.parametrize(("dense", "draws"), [(0.0, [0.0, 0.0]), (0.02, [0.0, 0.05]), (-0.02, [-0.03, 0.01])])
def test_of_a_dense_score_of_nothing_no_share_is_kept(tmp_path, dense, draws):
    """The task stands in the table, and all others as well."""
    answers = {"variants": {"dense": {"replicates": draws}, "int8": {"replicates": [0.3, 0.3]}}}
    found = results.kept({"dense": {"score": dense}, "int8": {"score": 0.3}}, answers, "int8")
    assert found == results.Kept(0.3, None, None, None)
    good = results.Kept(0.0, 0.0, 0.0, 0.0)
    rows = [
        results.Result("default", seed, 1000, 0.85, "pairs", "classification", "f1", 500, dense, good, found)
        for seed in (1, 2)
    ]
    assert results.table(rows).splitlines()[2].endswith("| 30.00% | 0.0 % (0.0 - 0.0) | - |")
    results.draw(tmp_path / "plot.svg", rows)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A project after a run of the default profile, and the battery's folder."""
    values = read_yaml(ROOT / "params.yaml")
    read = [{"path": "data/sparsify/model", "md5": "0"}]
    asked = {name: values[name] for name in ("common", "sparsify")}
    stages = {"sparsify": {"params": {"params.yaml": asked}, "outs": read}}
    for task in values["tasks"]:
        known = measured(task)
        outs = []
        for name, path in gates.files(task).items():
            place = tmp_path / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(getattr(known, name)))
            outs.append({"path": str(path), "md5": hashlib.md5(place.read_bytes()).hexdigest()})
        asked = {"finetune": values["finetune"], f"tasks.{task}.finetune": values["tasks"][task]["finetune"]}
        model = [{"path": f"data/finetune/{task}/model", "md5": "1"}]
        stages[f"finetune@{task}"] = {"deps": read, "params": {"params.yaml": asked}, "outs": model}
        stages[f"evaluate@{task}"] = {"deps": model, "outs": outs}
    (tmp_path / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}))
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "study/battery").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["results", "default"])
    return tmp_path


def test_of_a_run_that_did_not_end_the_finished_tasks_are_kept(run, capsys):
    first, *others = document.load().tasks
    path = run / f"data/metrics/evaluate/{first}.json"
    path.write_text(path.read_text() + " ")
    results.main()
    assert [row.task for row in results.saved()] == others
    assert f"Not finished: {first}. Go on with: make run PROFILE=battery" in capsys.readouterr().out


def test_a_task_of_another_profile_is_none_of_this_run(run):
    """DVC keeps its entry, and the corpus reads the folder that its splits lie in."""
    lock = json.loads((run / "dvc.lock").read_text())
    outs = [{"path": "data/tasks/other", "md5": "2"}]
    params = {"params.yaml": {"tasks.other.prepare_task": {"source": "other"}}}
    lock["stages"]["prepare_task@r8"] = {"outs": [{"path": "data/tasks/r8", "md5": "5"}]}
    lock["stages"]["prepare_task@other"] = {"cmd": "", "params": params, "outs": outs}
    lock["stages"]["prepare_corpus"] = {
        "deps": [{"path": "data/tasks", "md5": "3"}],
        "outs": [{"path": "data/prepare_corpus", "md5": "4"}],
    }
    lock["stages"]["sparsify"]["deps"] = [{"path": "data/prepare_corpus", "md5": "4"}]
    (run / "dvc.lock").write_text(json.dumps(lock))
    results.main()
    assert [row.task for row in results.saved()] == list(document.load().tasks)


def test_numbers_of_other_parameters_are_refused(run):
    params = run / "params.yaml"
    params.write_text(params.read_text().replace("sparsity: 0.85", "sparsity: 0.9", 1))
    with pytest.raises(
        DataError,
        match=r"found none: sparsify of params\.yaml is not what sparsify in dvc\.lock was made with\. "
        r"Run again: pruneonce run$",
    ):
        results.main()
    assert not (run / "study/battery/results").exists()


def test_numbers_of_one_task_of_other_parameters_are_left_out(run, capsys):
    params = run / "params.yaml"
    assert params.read_text().count("{epochs: 0.8}\n    quantize") == 1
    params.write_text(params.read_text().replace("{epochs: 0.8}\n    quantize", "{epochs: 0.9}\n    quantize"))
    results.main()
    assert "tweets" not in {row.task for row in results.saved()}
    assert "Not finished: tweets." in capsys.readouterr().out


def test_no_results_at_all_are_an_error(run):
    lock = json.loads((run / "dvc.lock").read_text())
    (run / "dvc.lock").write_text(json.dumps({**lock, "stages": {"sparsify": lock["stages"]["sparsify"]}}))
    with pytest.raises(
        DataError, match=r"expected results of r8, tweets, sentences, found none: .* Run again: make run PROFILE=battery$"
    ):
        results.main()


def test_a_run_is_kept_and_the_table_has_every_run(run, monkeypatch, capsys):
    for recipe in ("default", "thorough"):
        monkeypatch.setattr("sys.argv", ["results", recipe])
        results.main()
    rows = results.saved()
    assert [(row.recipe, row.task) for row in rows] == [
        (recipe, task) for recipe in ("default", "thorough") for task in document.load().tasks
    ]
    assert rows[0].tokens == 320 * 16 * 128
    assert (run / "study/battery/table.md").read_text() == results.table(rows)
    assert capsys.readouterr().out.endswith(results.table([row for row in rows if row.recipe == "thorough"]))
    scores = json.loads((run / f"data/metrics/evaluate/{rows[0].task}.json").read_text())
    assert rows[0].sparse.percent == pytest.approx(100 * scores["sparse"]["score"] / scores["dense"]["score"])
    first = (run / "study/battery/retention.svg").read_bytes()
    results.draw(run / "again.svg", results.saved())
    assert (run / "again.svg").read_bytes() == first


def test_seeds_share_a_row_of_the_table():
    kept = results.Kept(0.9, 90.0, 88.0, 92.0)
    one = results.Result("default", 1, 1000, 0.85, "pairs", "classification", "f1", 500, 1.0, kept, kept)
    other = replace(one, seed=2, dense=0.9, int8=results.Kept(0.72, 80.0, 75.0, 81.0))
    assert results.table([one, other]).splitlines()[2:] == [
        "| default | pairs | f1 | 500 | 2 | 95.00% | 90.00% | 81.00% | 90.0 % (88.0 - 92.0) | 85.0 % (75.0 - 92.0) |"
    ]
