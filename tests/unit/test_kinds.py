"""What a task is travels with its splits."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from pruneonce.errors import DataError, ModelError
from pruneonce.tasks import kinds
from pruneonce.tasks.answering import QuestionAnswering
from pruneonce.tasks.classification import Classification, MultiLabel, Regression
from pruneonce.tasks.tagging import TokenClassification

KIND = Classification("accuracy", ["a", "b", "c"])
EACH = [
    KIND,
    Regression("pearson"),
    MultiLabel("micro_f1", ["a", "b"]),
    TokenClassification("entity_f1", ["O", "B-X"]),
    QuestionAnswering("f1", 8, 30, 20, None),
    QuestionAnswering("exact_match", 8, 30, 20, 0.5),
]


@pytest.mark.parametrize("kind", EACH, ids=lambda kind: f"{type(kind).__name__}-{kind.metric}")
def test_a_task_travels_with_its_splits(tmp_path, kind):
    kinds.save(kind, tmp_path)
    assert kinds.load(tmp_path) == kind
    assert json.loads((tmp_path / "task.json").read_text())["metric"] == kind.metric
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind.metric = "other"


@pytest.mark.parametrize("kind", EACH[3:5], ids=["tags", "answers"])
def test_a_tokenizer_that_does_not_say_where_a_token_comes_from(kind):
    with pytest.raises(ModelError, match="expected a tokenizer in Rust"):
        kind.encode([], SimpleNamespace(is_fast=False), max_tokens=40)


def test_splits_that_do_not_say_what_they_are(tmp_path):
    with pytest.raises(DataError, match=r"expected task\.json in"):
        kinds.load(tmp_path)
