"""What every variant answers to the test split, row by row: for paired tests, for confusion matrices, and to read.

A paired test needs no model: rows that are right are kept for classes, and for any other metric its values on resampled
rows. The same seed draws the same rows for every model of one test split, so replicate i of two models is a pair.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from pruneonce.tasks.answering import QuestionAnswering
from pruneonce.tasks.classification import Classification, MultiLabel, Regression
from pruneonce.tasks.embedding import Embedding, cosine
from pruneonce.tasks.protocol import Kind
from pruneonce.tasks.scores import Scorer
from pruneonce.tasks.tagging import TokenClassification

MOST_ROWS, MOST_CHARACTERS = 50, 300  # of the rows in which two variants differ, and of their texts

Logits = Sequence[np.ndarray]  # of every row of the split, in its order


def compared(
    kind: Kind, split: Dataset, logits: Mapping[str, Logits], *, pair: tuple[str, str], resamples: int, seed: int
) -> dict[str, Any]:
    """The answers of all variants, and the rows in which the two variants of `pair` differ.

    rows: examples that are scored. labels, decisions: class numbers, and right: a digit for each row; for classes alone.
    replicates: the metric on `resamples` draws of as many rows, with replacement. Source: Efron 1979.
    """
    table: dict[str, Any] = {"metric": kind.metric, "classes": list(getattr(kind, "classes", [])), "labels": None}
    if isinstance(kind, Classification):
        table["labels"] = [int(label) for label in split["label"][:]]
    variants = {}
    for variant, rows in logits.items():
        total, scorers = kind.scorers(split, rows)
        drawn = replicates(total, scorers[kind.metric], resamples=resamples, seed=seed)
        variants[variant] = {**_classes(table["labels"], rows), "replicates": drawn}
    first, second = (logits[name] for name in pair)
    return {**table, "rows": total, "variants": variants, "disagreements": _disagreements(kind, split, first, second, pair)}


def replicates(total: int, scorer: Scorer, *, resamples: int, seed: int) -> list[float]:
    """The metric on `resamples` draws of `total` examples with replacement, to six digits."""
    draw = np.random.default_rng(seed)
    return [round(scorer(draw.integers(0, total, total)), 6) for _ in range(resamples)]


def _classes(labels: list[int] | None, logits: Logits) -> dict[str, Any]:
    if labels is None:
        return {"decisions": None, "right": None}
    decisions = [int(row.argmax()) for row in logits]
    right = "".join(str(int(one == other)) for one, other in zip(labels, decisions, strict=True))
    return {"decisions": decisions, "right": right}


def _disagreements(kind: Kind, split: Dataset, first: Logits, second: Logits, pair: tuple[str, str]) -> list[dict[str, Any]]:
    """The rows in which two variants answer differently, as words; of numbers and vectors, those that differ most."""
    said, also = words(kind, split, first), words(kind, split, second)
    if isinstance(kind, Embedding):
        chosen = np.argsort([cosine(one, other) for one, other in zip(first, second, strict=True)], kind="stable").tolist()
    elif isinstance(kind, Regression):
        distances = [-abs(float(one[0]) - float(other[0])) for one, other in zip(first, second, strict=True)]
        chosen = np.argsort(distances, kind="stable").tolist()
    else:
        chosen = [i for i, (one, other) in enumerate(zip(said, also, strict=True)) if one != other]
    rows, expected = _example_rows(kind, split), _expected(kind, split)
    found = []
    for i in chosen[:MOST_ROWS]:
        row = split[rows[i]]
        texts = {name: (row[name][:MOST_CHARACTERS] if name in row else None) for name in ("text", "pair")}
        found.append({"row": i, **texts, "label": expected[i], pair[0]: said[i], pair[1]: also[i]})
    return found


def words(kind: Kind, split: Dataset, logits: Logits) -> list[str]:
    """The answer to every example in words: class, labels, number, tags, span, or a vector's cosine with the dense one."""
    if isinstance(kind, Classification):
        return [kind.classes[int(row.argmax())] for row in logits]
    if isinstance(kind, MultiLabel):
        return [_joined(kind.classes, np.flatnonzero(row > 0)) for row in logits]
    if isinstance(kind, Regression):
        return [f"{float(row[0]):.4g}" for row in logits]
    if isinstance(kind, Embedding):
        return [f"{cosine(row, label):.4f}" for row, label in zip(logits, split["label"][:], strict=True)]
    if isinstance(kind, TokenClassification):
        return [" ".join(tags) for tags in kind.predictions(split, logits)]
    assert isinstance(kind, QuestionAnswering)
    return kind.predictions(split, logits)


def _expected(kind: Kind, split: Dataset) -> list[str]:
    """The label of every example in the same words."""
    if isinstance(kind, QuestionAnswering):
        return [" / ".join(dict.fromkeys(split[i]["answers"])) for i in _example_rows(kind, split)]
    labels = split["label"][:]
    if isinstance(kind, Embedding):
        return ["1.0000"] * len(labels)
    if isinstance(kind, Classification):
        return [kind.classes[label] for label in labels]
    if isinstance(kind, Regression):
        return [f"{label:.4g}" for label in labels]
    separator = " " if isinstance(kind, TokenClassification) else ", "
    return [_joined(kind.classes, chosen, separator) for chosen in labels]  # type: ignore[attr-defined]


def _joined(classes: Sequence[str], chosen: Sequence[int] | np.ndarray, separator: str = ", ") -> str:
    return separator.join(classes[int(i)] for i in chosen)


def _example_rows(kind: Kind, split: Dataset) -> list[int]:
    """The row of the split in which every example begins: a question may have several windows."""
    if isinstance(kind, QuestionAnswering):
        return [i for i, window in enumerate(split["window"][:]) if window == 0]
    return list(range(len(split)))
