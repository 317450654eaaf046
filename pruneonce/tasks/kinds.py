"""The kinds of task by name, and the file that stores a task with its splits."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pruneonce.errors import DataError
from pruneonce.tasks.answering import QuestionAnswering
from pruneonce.tasks.classification import Classification, MultiLabel, Regression
from pruneonce.tasks.embedding import Embedding
from pruneonce.tasks.protocol import Kind
from pruneonce.tasks.tagging import TokenClassification

KINDS: dict[str, Any] = {
    "classification": Classification,
    "regression": Regression,
    "multi_label": MultiLabel,
    "token_classification": TokenClassification,
    "question_answering": QuestionAnswering,
    "embedding": Embedding,
}
FILE = "task.json"


def save(kind: Kind, folder: Path) -> None:
    """Write the task into the folder of its splits."""
    (name,) = (name for name, one in KINDS.items() if type(kind) is one)
    (folder / FILE).write_text(json.dumps({"kind": name, **asdict(kind)}) + "\n")


def load(folder: Path) -> Kind:
    """Return the task of the splits in `folder`. Raises DataError if its file is missing or damaged."""
    if not (folder / FILE).is_file():
        raise DataError(f"expected {FILE} in {folder}, found none: it is written with the splits by `prepare_task`.")
    try:
        fields = json.loads((folder / FILE).read_bytes())
        return TypeAdapter(KINDS[fields.pop("kind")]).validate_json(json.dumps(fields), strict=True)
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # no JSON, no object, no such kind, other fields
        raise DataError(
            f"expected what `prepare_task` writes in {folder / FILE}, found: {type(error).__name__}: {error}. "
            "Write the splits again."
        ) from None
