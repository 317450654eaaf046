"""A kind of task: all that differs between kinds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
import pyarrow as pa
from datasets import Dataset
from torch import Tensor, device

from pruneonce.batch import Batch
from pruneonce.tasks.examples import Example


class TaskSettings(Protocol):
    """The settings of a task that its kind reads."""

    @property
    def metric(self) -> str: ...
    @property
    def pair(self) -> str | None: ...
    @property
    def labels(self) -> list[str] | None: ...
    @property
    def pooling(self) -> Literal["mean", "cls", "max"]: ...
    @property
    def normalize(self) -> bool: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def stride_tokens(self) -> int: ...
    @property
    def max_answer_tokens(self) -> int: ...
    @property
    def n_best(self) -> int: ...
    @property
    def null_threshold(self) -> float | None: ...


@dataclass(frozen=True)
class Kind(ABC):
    """A kind of task: its rows, targets, losses, decisions and scores.

    Its fields are stored with the splits for the later stages (`kinds.save`, `kinds.load`).
    Logits are one tensor, float[batch, ...]; two outputs (start and end) are stacked behind the batch axis.
    """

    metric: str

    architecture: ClassVar[Any]  # Auto class of transformers
    outputs: ClassVar[tuple[str, ...]] = ("logits",)  # of the model, and of its ONNX file
    columns: ClassVar[dict[str, pa.DataType]]  # of a split, in addition to `splits.COLUMNS`
    targets: ClassVar[tuple[str, ...]] = ("label",)  # the columns that `labels` reads
    # folder below the splits' with the dense model, if that does the task as it was pre-trained; None: it is to learn it
    dense: ClassVar[str | None] = None
    # whether the teacher's logits say all of a pair of two rows' texts: it can be learned without a label (`NewPairs`)
    new_pairs: ClassVar[bool] = False

    @classmethod
    def reader(cls, settings: TaskSettings) -> Callable[..., Example]:
        """Return what makes an example of a row's cells."""
        return cls.example

    @classmethod
    @abstractmethod
    def example(cls, *row: Any) -> Example:
        """Return the example of a row's cells: text, second text of a pair if there is one, label."""

    @classmethod
    def classes_of(cls, row: Example) -> Iterable[str]:
        """Return the classes in a row's label; none if the kind has no classes."""
        return ()

    @classmethod
    @abstractmethod
    def from_rows(cls, settings: TaskSettings, train: Sequence[Example], *others: Sequence[Example]) -> Self:
        """Return the task of these splits. Raises DataError if the rows do not fit the settings."""

    def taught(
        self,
        rows: Mapping[str, Sequence[Example]],
        model_folder: Path,
        tokenizer,
        splits_folder: Path,
        *,
        device: device,
    ) -> tuple["Kind", Mapping[str, Sequence[Example]]]:
        """Return the task, and the rows of every split with the labels that the dense model gives them, if it does."""
        return self, rows

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Fields of the model's configuration."""

    @abstractmethod
    def encode(self, examples: Sequence[Example], tokenizer, *, max_tokens: int) -> tuple[dict[str, list], int]:
        """Return the columns of a split, and how many texts were cut."""

    @abstractmethod
    def labels(self, rows: Sequence[Mapping[str, Any]], length: int) -> Tensor:
        """Return the labels of a batch of rows padded to `length`, for the hard loss."""

    @abstractmethod
    def hard(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss against the labels, a scalar."""

    @abstractmethod
    def soft(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        """Return the loss against the teacher's logits, a scalar."""

    def compared(self, logits: np.ndarray, batch: Batch) -> np.ndarray:
        """Return the logits of a batch that an answer is read from: two runtimes must agree on these.

        The other ones, such as those of padding, are by chance: no loss has ever reached them.
        """
        return logits

    @abstractmethod
    def decisions(self, logits: np.ndarray, batch: Batch) -> np.ndarray:
        """Return the decisions that a batch's logits make, one value each."""

    @abstractmethod
    def scorers(self, split: Dataset, logits: Sequence[np.ndarray]) -> tuple[int, dict[str, Callable[[np.ndarray], float]]]:
        """Return (number of examples, metrics by name) for the logits of every row of the split."""


def label_config(names: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a model's configuration that name its classes."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
