"""profiles/tasks: GLUE and SQuAD out of files with the hub's schema, through the code that loads from the hub."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from pipeline.kept import Kept
from pipeline.params.document import parse
from pipeline.params.reading import read_yaml
from pruneonce.errors import ConfigError, DataError
from pruneonce.sources import fetch, tables
from pruneonce.tasks import kinds
from pruneonce.tasks.splits import read_split, read_test_texts
from tests.integration import tiny

BLOCKS = {path.stem: read_yaml(path) for path in sorted((tiny.ROOT / "profiles/tasks").glob("*.yaml"))}
# The hub's columns and classes in the hub's order; None: a number.
GLUE: dict[str, tuple[tuple[str, ...], list[str] | None]] = {
    "cola": (("sentence",), ["unacceptable", "acceptable"]),
    "mnli": (("premise", "hypothesis"), ["entailment", "neutral", "contradiction"]),
    "mrpc": (("sentence1", "sentence2"), ["not_equivalent", "equivalent"]),
    "qnli": (("question", "sentence"), ["entailment", "not_entailment"]),
    "qqp": (("question1", "question2"), ["not_duplicate", "duplicate"]),
    "rte": (("sentence1", "sentence2"), ["entailment", "not_entailment"]),
    "sst2": (("sentence",), ["negative", "positive"]),
    "stsb": (("sentence1", "sentence2"), None),
    "wnli": (("sentence1", "sentence2"), ["not_entailment", "entailment"]),
}
SQUAD = ("squad1", "squad2")
METRICS = {"cola": "mcc", "mrpc": "f1", "stsb": "pearson", "squad1": "f1", "squad2": "f1"}


def glue_rows(name: str, split: str, count: int) -> tuple[list[dict[str, Any]], Features]:
    columns, classes = GLUE[name]
    label = Value("float32") if classes is None else ClassLabel(names=classes)
    secret = split.startswith("test")
    rows = [
        {
            **{column: f"{split} {column} number {i}" for column in columns},
            "label": -1 if secret else i / 2 if classes is None else i % len(classes),
            "idx": i,
        }
        for i in range(count)
    ]
    return rows, Features({**{c: Value("string") for c in columns}, "label": label, "idx": Value("int32")})


def squad_rows(name: str, split: str, count: int) -> tuple[list[dict[str, Any]], Features]:
    rows = []
    for i in range(count):
        context = f"  {split} context {i // 2}: the café of Zürich, built in {1900 + i}, has rooms."
        text = ["the café", "café of Zürich"][i % 2]
        found = {"text": [text, "café"], "answer_start": [context.index(text), context.index("café")]}
        none = name == "squad2" and i % 3 == 0
        answers = {"text": [], "answer_start": []} if none else found
        rows.append({"id": f"{i}", "title": "t", "context": context, "question": f" What {i}?", "answers": answers})
    answers = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
    return rows, Features({**dict.fromkeys(("id", "title", "context", "question"), Value("string")), "answers": answers})


def hub(folder: Path, name: str, config: str) -> str:
    """A repository of the hub in a folder: a card that names the splits, a parquet file each."""
    splits = {"train": 40, "validation": 8, "test": 4}
    if name == "mnli":
        splits = {"train": 40, "validation_matched": 8, "validation_mismatched": 6, "test_matched": 4}
    card = ["---", "configs:", f"- config_name: {config}", "  data_files:"]
    for split, count in splits.items():
        rows, features = (squad_rows if name in SQUAD else glue_rows)(name, split, count)
        path = folder / config / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows, features=features).to_parquet(path)
        card += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    return str(folder)


def document(name: str) -> dict[str, Any]:
    """The tiny profile with this block's source and task."""
    found, block = tiny.document(), copy.deepcopy(BLOCKS[name])
    found["fetch"] = block["fetch"]
    found["tasks"] = block["tasks"]
    return found


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """name -> (folder of the splits, what prepare_task said)."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def prepare(name: str, **splits: str) -> tuple[Path, dict[str, Any]]:
        asked = document(name)
        asked["fetch"][name]["splits"] |= splits
        source = parse(asked, name).section("fetch", name)
        repository = hub(tmp_path / "hub", name, source.config)
        raw = tmp_path / f"data/raw/{name}"
        keep = Kept(tmp_path / "scratch")
        fetch.fetch_data_set(repository, source.revision, raw, config=source.config, splits=source.splits, keep=keep)
        model = Path(shutil.copytree(tiny.ROOT / "tests/tiny/model", tmp_path / "data/raw/tiny-bert"))
        facts = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(
            json.dumps({**facts, "max_position_embeddings": 384})
        )  # as long as SQuAD's windows
        (command,) = [c for c in tiny.commands(asked) if c.name == f"prepare_task@{name}"]
        return tmp_path / f"data/tasks/{name}", tiny.run(command, tmp_path, asked)

    return prepare


def test_glue_and_squad_are_there_whole():
    assert {*GLUE, *SQUAD} <= set(BLOCKS)
    assert len(GLUE) == 9
    pinned = {s["revision"] for name in (*GLUE, *SQUAD) for s in BLOCKS[name]["fetch"].values()}
    assert len(pinned) == 3


@pytest.mark.parametrize("name", [*GLUE, *SQUAD])
def test_what_a_block_expects_is_the_hub_s_schema(name):
    """The files of this test have the hub's columns, in its order; so has what `pruneonce plan` reads before a fetch."""
    source = BLOCKS[name]["fetch"][name]
    rows, features = (squad_rows if name in SQUAD else glue_rows)(name, "train", 2)
    assert source["expects"]["columns"] == list(features) == list(rows[0])
    assert set(source["expects"]["rows"]) == set(source["splits"])


@pytest.mark.parametrize("name", GLUE)
def test_glue(prepared, name):
    folder, found = prepared(name)
    columns, classes = GLUE[name]
    kind = kinds.load(folder)
    assert kind.metric == METRICS.get(name, "accuracy")
    assert sorted(getattr(kind, "classes", [])) == sorted(classes or [])
    # What the hub calls 1 is the positive class where one is.
    assert kind.metric not in ("f1", "mcc") or kind.classes == classes
    assert {split: found[split]["rows"] for split in ("train", "validation", "test")} == {
        "train": 40 - found["validation"]["rows"],
        "validation": found["validation"]["rows"],
        "test": 8,
    }
    assert 3 <= found["validation"]["rows"] <= 5
    assert ("test-mismatched" in found) == (name == "mnli")
    test = read_split(folder / "test.arrow")
    rows, _ = glue_rows(name, "validation_matched" if name == "mnli" else "validation", 8)
    assert test["text"][:] == [row[columns[0]] for row in rows]
    assert ("pair" in test.column_names) == (len(columns) == 2)
    labels = [kind.classes[label] for label in test["label"]] if classes else test["label"][:]
    assert labels == [classes[row["label"]] if classes else row["label"] for row in rows]


def test_mnli_has_two_tests(prepared):
    folder, found = prepared("mnli")
    assert (found["test"]["rows"], found["test-mismatched"]["rows"]) == (8, 6)
    texts = list(read_test_texts(folder))
    assert len(texts) == 2 * (8 + 6)
    assert "validation_mismatched premise number 0" in texts


@pytest.mark.parametrize("name", ["sst2", "stsb"])
def test_labels_that_the_hub_keeps_secret_are_refused(prepared, name):
    with pytest.raises(DataError, match="kept secret"):
        prepared(name, test="test")


@pytest.mark.parametrize("name", SQUAD)
def test_squad(prepared, name):
    folder, found = prepared(name)
    kind = kinds.load(folder)
    assert (kind.stride_tokens, kind.max_answer_tokens, kind.n_best) == (128, 30, 20)
    assert kind.null_threshold == (0.0 if name == "squad2" else None)
    assert found["test"]["rows"] == 8
    train, test = (read_split(folder / f"{split}.arrow") for split in ("train", "test"))
    first = next(row for row in test if row["answers"])
    assert len(first["answers"]) == 2
    begin, end = first["begins"][first["label"][0]], first["ends"][first["label"][1]]
    assert first["pair"][begin:end] == first["answers"][0]
    unanswered = [row for row in (*train, *test) if not row["answers"]]
    assert all(row["label"] == [0, 0] for row in unanswered)
    assert bool(unanswered) == (name == "squad2")
    contexts = {row["pair"] for row in train}
    assert not contexts & {row["pair"] for row in read_split(folder / "validation.arrow")}


def test_squad_trains_on_windows_that_are_whole():
    asked = document("squad1")
    asked["tasks"]["squad1"] = {**asked["tasks"]["squad1"], "finetune": {"max_tokens": 128}}
    with pytest.raises(ConfigError, match="need max_tokens of finetune >= that of prepare_task"):
        parse(asked, "squad1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "mcc"}, "metric of regression is one of pearson, spearman, found 'mcc'"),
        ({"kind": "question_answering", "metric": "f1", "pair": None}, "needs `pair`, the column of the context"),
        ({"kind": "token_classification", "metric": "entity_f1"}, "reads one text, found pair 'sentence2'"),
        ({"kind": "question_answering", "metric": "f1", "stride_tokens": 60}, "need stride_tokens < max_tokens / 2 - 4"),
        ({"kind": "ranking"}, "Input should be 'classification'"),
    ],
)
def test_a_block_that_cannot_be(change, message):
    asked = document("stsb")
    asked["tasks"]["stsb"] = {**asked["tasks"]["stsb"], "prepare_task": {**asked["tasks"]["stsb"]["prepare_task"], **change}}
    with pytest.raises(ConfigError) as error:
        parse(asked, "stsb")
    assert message in str(error.value)


def test_a_second_text_that_is_not_there(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,x\n")
    with pytest.raises(DataError, match=r"expected column 'other' in .*found columns \['text', 'label'\]"):
        list(tables.read(tmp_path / "train.csv", ["text", "other", "label"]))
