"""Kinds of task with one label for a text or pair: a class, a number, or any number of labels."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from scipy import stats
from sklearn import metrics
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from pruneonce.batch import Batch
from pruneonce.distillation.losses import binary_soft_loss, soft_loss
from pruneonce.errors import DataError
from pruneonce.sources import cells
from pruneonce.tasks import splits
from pruneonce.tasks.classes import ClassKind
from pruneonce.tasks.examples import Example
from pruneonce.tasks.protocol import Kind, TaskSettings, label_config
from pruneonce.tasks.scores import Scorer


@dataclass(frozen=True)
class _TextKind(Kind):
    """What all three kinds share."""

    architecture: ClassVar[Any] = AutoModelForSequenceClassification
    new_pairs: ClassVar[bool] = True

    @abstractmethod
    def target(self, label: Any) -> Any:
        """Return a label in the form in which a split stores it."""

    def encode(self, examples: Sequence[Example], tokenizer, *, max_tokens: int) -> tuple[dict[str, list], int]:
        columns, cut = splits.encode_texts(examples, tokenizer, max_tokens=max_tokens)
        texts = {name: column for name, column in columns.items() if name in ("text", "pair")}
        return {**texts, "label": [self.target(row.label) for row in examples], **columns}, cut


@dataclass(frozen=True)
class Classification(ClassKind, _TextKind):
    """One class for each text. Metrics: accuracy, macro_f1, mcc; for two classes also f1 of the second one."""

    columns: ClassVar[dict[str, pa.DataType]] = {"label": pa.int64()}

    @classmethod
    def example(cls, *row: Any) -> Example:
        *texts, label = *map(cells.text, row[:-1]), cells.class_name(row[-1])
        return Example(tuple(texts), label or None, stratum=label)

    @classmethod
    def classes_of(cls, row: Example) -> Iterable[str]:
        return (row.label,)

    @classmethod
    def from_rows(cls, settings: TaskSettings, train: Sequence[Example], *others: Sequence[Example]) -> Self:
        kind = super().from_rows(settings, train, *others)
        if kind.metric == "f1" and len(kind.classes) != 2:
            raise DataError(f"expected two classes for metric f1, found {len(kind.classes)}: set `metric` to macro_f1.")
        return kind

    def target(self, label: str) -> int:
        return self.classes.index(label)

    def labels(self, rows: Sequence[Mapping[str, Any]], length: int) -> Tensor:
        """int64[batch]"""
        return torch.tensor([row["label"] for row in rows])

    def hard(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross entropy."""
        return F.cross_entropy(logits.float(), batch["labels"])

    def soft(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        return soft_loss(student, teacher, temperature)

    def decisions(self, logits: np.ndarray, batch: Batch) -> np.ndarray:
        return logits.argmax(-1)

    def scorers(self, split: Dataset, logits: Sequence[np.ndarray]) -> tuple[int, dict[str, Scorer]]:
        labels, predicted = np.array(split["label"][:]), np.array([row.argmax() for row in logits])

        def mcc(rows: np.ndarray) -> float:
            if len({*labels[rows], *predicted[rows]}) == 1:  # undefined
                return 0.0
            return float(metrics.matthews_corrcoef(labels[rows], predicted[rows]))

        scorers: dict[str, Scorer] = {
            "accuracy": lambda rows: float((labels[rows] == predicted[rows]).mean()),
            "macro_f1": _f1(labels, predicted, "macro"),
            "mcc": mcc,
        }
        if len(self.classes) == 2:
            scorers["f1"] = _f1(labels == 1, predicted == 1, "binary")
        return len(labels), scorers


@dataclass(frozen=True)
class Regression(_TextKind):
    """A number for each text. Metrics: pearson, spearman."""

    columns: ClassVar[dict[str, pa.DataType]] = {"label": pa.float64()}

    @classmethod
    def example(cls, *row: Any) -> Example:
        """Return the example; NaN in any spelling is a missing label. Raises DataError for a label that is no number."""
        *texts, label = map(cells.text, row)
        try:
            if "_" in label:  # Python's own spelling: 1_000
                raise ValueError
            value = float(label) if label else math.nan
        except ValueError:
            raise DataError(f"expected a number as label, found {label!r} (text: {texts[0][:60]!r}).") from None
        return Example(tuple(texts), None if math.isnan(value) else value)

    @classmethod
    def from_rows(cls, settings: TaskSettings, train: Sequence[Example], *others: Sequence[Example]) -> Self:
        for rows in (train, *others):
            if not np.isfinite([row.label for row in rows]).all():
                raise DataError("expected finite numbers as labels, found inf.")
            if len({row.label for row in rows}) == 1:
                raise DataError(
                    f"expected labels that differ, found {rows[0].label} in all {len(rows)} rows. On the hub this marks "
                    "labels that are kept secret: take a split whose labels are public."
                )
        return cls(settings.metric)

    @property
    def config(self) -> dict[str, Any]:
        return {**label_config(["number"]), "problem_type": "regression"}

    def target(self, label: float) -> float:
        return label

    def labels(self, rows: Sequence[Mapping[str, Any]], length: int) -> Tensor:
        """float[batch]"""
        return torch.tensor([row["label"] for row in rows], dtype=torch.float32)

    def hard(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean squared error."""
        return F.mse_loss(logits.float().squeeze(-1), batch["labels"])

    def soft(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        """Mean squared error against the teacher's number; a number has no temperature."""
        return F.mse_loss(student.float(), teacher.detach().float())

    def decisions(self, logits: np.ndarray, batch: Batch) -> np.ndarray:
        """Return the same value for every row: a number makes no decision, so parity compares the numbers alone."""
        return np.zeros(len(logits), int)

    def scorers(self, split: Dataset, logits: Sequence[np.ndarray]) -> tuple[int, dict[str, Scorer]]:
        labels, predicted = np.array(split["label"][:]), np.array([float(row[0]) for row in logits])

        def correlation(measure) -> Scorer:
            def score(rows: np.ndarray) -> float:
                x, y = labels[rows], predicted[rows]
                return float(measure(x, y).statistic) if np.ptp(x) > 0 and np.ptp(y) > 0 else 0.0  # 0: undefined

            return score

        return len(labels), {"pearson": correlation(stats.pearsonr), "spearman": correlation(stats.spearmanr)}


@dataclass(frozen=True)
class MultiLabel(ClassKind, _TextKind):
    """Any number of labels for each text. Metrics: micro_f1, macro_f1, accuracy (all labels of a text are right)."""

    columns: ClassVar[dict[str, pa.DataType]] = {"label": pa.list_(pa.int32())}

    @classmethod
    def example(cls, *row: Any) -> Example:
        """Return the example. Its labels are a list, a list in text (`cells.parse_list`) or text with commas; or none.

        An empty list or text says that no label applies. None and NaN say nothing: the row has no label.
        """
        *cells_of_texts, label = row
        texts = tuple(map(cells.text, cells_of_texts))
        if cells.is_missing(label):
            return Example(texts, None)
        values = label if isinstance(label, list) else cells.parse_list(label)
        if values is None:
            values = cells.split_labels(cells.class_name(label))
        return Example(texts, tuple(sorted({*filter(None, map(cells.class_name, values))})))

    @classmethod
    def classes_of(cls, row: Example) -> Iterable[str]:
        return row.label

    @property
    def config(self) -> dict[str, Any]:
        return {**super().config, "problem_type": "multi_label_classification"}

    def target(self, label: tuple[str, ...]) -> list[int]:
        return [self.classes.index(name) for name in label]

    def _matrix(self, lists: Iterable[Iterable[int]]) -> np.ndarray:
        return np.array([np.isin(range(len(self.classes)), list(chosen)) for chosen in lists])

    def labels(self, rows: Sequence[Mapping[str, Any]], length: int) -> Tensor:
        """float[batch, labels], 1 for the labels of a text"""
        return torch.from_numpy(self._matrix(row["label"] for row in rows)).float()

    def hard(self, logits: Tensor, batch: Batch) -> Tensor:
        """Binary cross entropy, mean over rows and labels."""
        return F.binary_cross_entropy_with_logits(logits.float(), batch["labels"])

    def soft(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        return binary_soft_loss(student, teacher, temperature)

    def decisions(self, logits: np.ndarray, batch: Batch) -> np.ndarray:
        return (logits > 0).ravel()

    def scorers(self, split: Dataset, logits: Sequence[np.ndarray]) -> tuple[int, dict[str, Scorer]]:
        labels, predicted = self._matrix(split["label"][:]), np.stack(list(logits)) > 0
        return len(labels), {
            "accuracy": lambda rows: float((labels[rows] == predicted[rows]).all(-1).mean()),
            "micro_f1": _f1(labels, predicted, "micro"),
            "macro_f1": _f1(labels, predicted, "macro"),
        }


def _f1(labels: np.ndarray, predicted: np.ndarray, average: str) -> Scorer:
    """Return the scorer of F1, 0 where it is undefined. average: over classes, as scikit-learn names it.

    A macro average is over the classes that the rows or the answers have: one without either has no F1.
    """

    def score(rows: np.ndarray) -> float:
        return float(np.nan_to_num(metrics.f1_score(labels[rows], predicted[rows], average=average, zero_division=np.nan)))

    return score
