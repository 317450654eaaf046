"""What a kind of task is: the protocol that every kind follows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import pyarrow as pa
from datasets import Dataset
from torch import Tensor

from pruneonce.batch import Batch
from pruneonce.tasks.examples import Example


class Wanted(Protocol):
    """What a person says of a task."""

    @property
    def metric(self) -> str: ...
    @property
    def labels(self) -> list[str] | None: ...
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


class Kind(Protocol):
    """All that differs between kinds of task: rows, targets, losses, decisions, scores.

    A kind is a frozen dataclass whose fields are what the later stages know of a task (`kinds.save`, `kinds.load`).
    Logits are one tensor, float[batch, ...]; two outputs (start and end) are stacked behind the batch axis.
    """

    @property
    def metric(self) -> str: ...

    architecture: ClassVar[Any]  # transformers' Auto class
    outputs: ClassVar[tuple[str, ...]]  # of the model, and of its ONNX file
    columns: ClassVar[dict[str, pa.DataType]]  # of a split, beside COLUMNS
    targets: ClassVar[tuple[str, ...]]  # those that `labels` reads

    @classmethod
    def example(cls, *row: Any) -> Example:
        """A row out of the cells of its columns: text, the pair's second text if there is one, label."""
        ...

    @classmethod
    def shown(cls, row: Example) -> Iterable[str]:
        """The classes that a row shows; none if the kind has no classes."""
        ...

    @classmethod
    def of(cls, wanted: Wanted, train: Sequence[Example], *others: Sequence[Example]) -> Self:
        """The task as the rows of its splits show it. Raises DataError if they are not what was wanted."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """Fields of the model's configuration."""
        ...

    def encode(self, examples: Sequence[Example], tokenizer, *, max_tokens: int) -> tuple[dict[str, list], int]:
        """Columns of a split, and how many texts were cut."""
        ...

    def labels(self, rows: Sequence[Mapping[str, Any]], length: int) -> Tensor:
        """What the hard loss reads, for a batch of rows padded to `length`."""
        ...

    def hard(self, logits: Tensor, batch: Batch) -> Tensor:
        """Loss against the labels."""
        ...

    def soft(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        """Loss against the teacher's logits."""
        ...

    def decisions(self, logits: np.ndarray, batch: Batch) -> np.ndarray:
        """What is decided by the logits of a batch, one value a decision."""
        ...

    def scorers(self, split: Dataset, logits: Sequence[np.ndarray]) -> tuple[int, dict[str, Callable[[np.ndarray], float]]]:
        """(examples, metrics by name), out of the logits of every row of the split."""
        ...
