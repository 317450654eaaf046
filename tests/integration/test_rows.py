"""prepare_task on rows that are few, odd or broken: what it says, and one error where it cannot go on."""

import copy
import json
import shutil
from typing import Any

import pytest

from pruneonce.errors import DataError
from pruneonce.tasks import splits
from tests.integration import tiny
from tests.integration.tiny import TASK


@pytest.fixture
def prepare(tmp_path):
    """(files of the source by name, changes of the task's block) -> metrics of prepare_task."""

    def run(files: dict[str, str | bytes], **changes: Any) -> dict[str, Any]:
        document = copy.deepcopy(tiny.document())
        document["tasks"][TASK]["prepare_task"] |= {"text": "text", "label": "label", **changes}
        source = tmp_path / "data/raw/topic"
        source.mkdir(parents=True)
        shutil.copytree(tiny.ROOT / "tests/tiny/model", tmp_path / "data/raw/tiny-bert")
        for name, content in files.items():
            (source / name).write_bytes(content.encode() if isinstance(content, str) else content)
        (command,) = [c for c in tiny.commands(document) if c.name == f"prepare_task@{TASK}"]
        return tiny.run(command, tmp_path, document)

    return run


def rows(*labels):
    return "text,label\n" + "".join(f"text number {i},{label}\n" for i, label in enumerate(labels))


def test_the_classes_that_a_split_lacks_are_said(prepare, capsys, tmp_path):
    labels = [f"big {i}" for i in range(2) for _ in range(100)] + [f"small {i}" for i in range(60) for _ in range(4)]
    found = prepare({"train.csv": rows(*labels)}, validation_ratio=0.1, test_ratio=0.1)
    assert [found[split]["rows"] for split in ("train", "validation", "test")] == [352, 44, 44]
    shown = {
        split: len(set(splits.read_split(tmp_path / f"data/tasks/{TASK}/{split}.arrow")["label"]))
        for split in found["dropped"]
    }
    assert shown == {"train": 62, "validation": 26, "test": 26}
    assert found["lacking_classes"] == {"validation": 36, "test": 36}
    said = capsys.readouterr().out
    assert "validation lacks 36 of 62 classes, e.g. small" in said
    assert "test lacks 36 of 62 classes, e.g. small" in said
    assert "train lacks" not in said


def test_nothing_is_said_where_nothing_lacks(prepare, capsys):
    found = prepare({"train.csv": rows(*"ab" * 50)})
    assert set(found) == {"train", "validation", "test", "classes", "dropped", "shared_second_texts"}
    assert capsys.readouterr().out == ""


def test_a_class_that_may_be_a_missing_value_is_said(prepare, capsys):
    assert prepare({"train.csv": rows(*["None", "b"] * 50)})["classes"] == 2
    assert "['None'] are taken for classes." in capsys.readouterr().out


def test_who_names_it_means_it(prepare, capsys):
    assert prepare({"train.csv": rows(*["None", "nan"] * 50)}, labels=["nan", "None"])["classes"] == 2
    assert capsys.readouterr().out == ""


def test_missing_labels_are_dropped_and_counted(prepare):
    lines = [{"text": f"text {i}", "label": [1, 2.0, 1.0, None, float("nan")][i % 5]} for i in range(100)]
    found = prepare({"train.jsonl": "".join(json.dumps(line) + "\n" for line in lines)})
    assert found["classes"] == 2
    assert found["dropped"]["train"] == {"empty": 40, "duplicate": 0, "held_out": 0}


GOOD = rows(*"ab" * 20)
BROKEN: dict[str, tuple[dict[str, str | bytes], str]] = {
    "a header only": ({"train.csv": "text,label\n"}, "expected rows in every split, found none in train, validation, test"),
    "a test of a header only": ({"train.csv": GOOD, "test.csv": "text,label\n"}, "found none in test"),
    "no labels": ({"train.csv": rows(*[""] * 9)}, "expected rows in every split, found none in train"),
    "one class": ({"train.csv": rows(*"a" * 40)}, r"expected two classes or more, found \['a'\]"),
    "one row": ({"train.csv": rows("a")}, "expected rows in every split, found none in"),
    "a row a class": ({"train.csv": rows(*"abcdefghij")}, "expected rows in every split, found none in validation, test"),
    "nan": ({"train.csv": rows(*["a", "nan"] * 20)}, r"expected classes, found 'nan' in \d+ rows"),
    "3 and 3.0": ({"train.csv": rows(*["3", "3.0", "4"] * 20)}, "expected one name for a class, found '3' and '3.0'"),
    "a column twice": ({"train.csv": GOOD.replace("label", "text", 1)}, "expected column 'text' once in .*train.csv"),
    "a column twice in test": (
        {"train.csv": GOOD, "test.csv": GOOD.replace("text,label", "text,label,label", 1)},
        "expected column 'label' once in .*test.csv",
    ),
    "json": (
        {"train.json": "[]"},
        r"expected a file train\.\* in source 'topic', found \['train\.json'\]\. Its ending .*\.jsonl",
    ),
    "a test in json": ({"train.csv": GOOD, "test.json": "[]"}, r"expected a file test\.\* in source 'topic'"),
    "a list for a text": (
        {"train.jsonl": '{"text": "a", "label": "x"}\n{"text": ["b"], "label": "y"}\n'},
        r"found the list \['b'\]\. It stands in column 'text', line 2 of .*train\.jsonl",
    ),
    "an object for a label": (
        {"train.jsonl": '{"text": "a", "label": {"b": 1}}\n'},
        "found the object .*column 'label', line 1 of",
    ),
    "gzip": ({"train.csv": b"\x1f\x8b\x08\0"}, "found a gzip file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_rows_that_cannot_be_a_task(prepare, tmp_path, case):
    files, message = BROKEN[case]
    with pytest.raises(DataError, match=message):
        prepare(files)
    assert not list((tmp_path / "data/tasks").rglob("*.arrow"))
    assert len(BROKEN) == 15
