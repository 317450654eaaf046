"""Token classification: a tag for each word, predicted at the word's first token."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from seqeval.metrics.sequence_labeling import get_entities
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification

from pruneonce.batch import IGNORED, Batch
from pruneonce.distillation.losses import soft_loss
from pruneonce.errors import DataError
from pruneonce.sources import cells
from pruneonce.tasks import splits
from pruneonce.tasks.classes import ClassKind
from pruneonce.tasks.examples import Example
from pruneonce.tasks.protocol import TaskSettings
from pruneonce.tasks.scores import Scorer

OUTSIDE = "O"  # tag of a word that is in no entity
CUT = -1  # place of a word without a token: it was cut, or the tokenizer dropped it


def _words(cell: Any) -> list[Any]:
    """Return the words or tags of a list, or of a text with white space between them."""
    return cell if isinstance(cell, list) else cells.text(cell).split()


@dataclass(frozen=True)
class TokenClassification(ClassKind):
    """A tag for each word. Metrics: token_accuracy, and entity_f1 (whole entities) for tags such as B-PER, I-PER and O."""

    architecture: ClassVar[Any] = AutoModelForTokenClassification
    columns: ClassVar[dict[str, pa.DataType]] = {"label": pa.list_(pa.int32()), "places": pa.list_(pa.int32())}
    targets: ClassVar[tuple[str, ...]] = ("label", "places")

    @classmethod
    def example(cls, *row: Any) -> Example:
        """Return the example of two lists, also in text (`cells.parse_list`), or of two texts with white space.

        A row with a missing tag has no label. Raises DataError if the numbers of words and tags differ.
        """
        text, label = row
        if (tag_list := cells.parse_list(label)) is not None:
            text, label = cells.parse_list(text) or text, tag_list
        words, tags = tuple(map(cells.text, _words(text))), tuple(map(cells.class_name, _words(label)))
        if len(words) != len(tags):
            raise DataError(
                f"expected a tag for each of {len(words)} words, found {len(tags)} (text: {' '.join(words)[:60]!r})."
            )
        return Example((" ".join(words),), (words, tags) if words and all(tags) else None)

    @classmethod
    def classes_of(cls, row: Example) -> Iterable[str]:
        return row.label[1]

    @classmethod
    def from_rows(cls, settings: TaskSettings, train: Sequence[Example], *others: Sequence[Example]) -> Self:
        kind = super().from_rows(settings, train, *others)
        if kind.metric == "entity_f1" and not _names_entities(kind.classes):
            raise DataError(f"expected tags like B-PER, I-PER and O for metric entity_f1, found {kind.classes[:8]}.")
        return kind

    def encode(self, examples: Sequence[Example], tokenizer, *, max_tokens: int) -> tuple[dict[str, list], int]:
        splits.check_offsets(tokenizer)
        index = {name: i for i, name in enumerate(self.classes)}
        # Not `is_split_into_words`: byte-level tokenizers would read the words without the spaces between them.
        encoded = tokenizer([row.texts[0] for row in examples], return_offsets_mapping=True, verbose=False)
        ids, places = [], []
        for i, (row, whole) in enumerate(zip(examples, splits.token_ids(encoded, tokenizer), strict=True)):
            first, words = dict[int, int](), _word_at(row.label[0])
            for place, (begin, end) in enumerate(encoded["offset_mapping"][i][: max_tokens - 1]):
                if begin < end:  # a special token has no characters
                    first.setdefault(words[end - 1], place)
            ids.append(whole if len(whole) <= max_tokens else [*whole[: max_tokens - 1], whole[-1]])
            places.append([first.get(word, CUT) for word in range(len(row.label[0]))])
        texts, labels = [row.texts[0] for row in examples], [[index[tag] for tag in row.label[1]] for row in examples]
        cut = sum(len(whole) > max_tokens for whole in encoded["input_ids"])
        return {"text": texts, "label": labels, "places": places, "input_ids": ids}, cut

    def labels(self, rows: Sequence[Mapping[str, Any]], length: int) -> Tensor:
        """int64[batch, length]: the tag at the first token of its word, IGNORED elsewhere."""
        labels = torch.full((len(rows), length), IGNORED)
        for i, row in enumerate(rows):
            for place, tag in zip(row["places"], row["label"], strict=True):
                if CUT < place < length - 1:  # a batch that is cut ends in a special token
                    labels[i, place] = tag
        return labels

    def hard(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross entropy, mean over words; 0 without any, as in a batch whose words were all cut."""
        words = batch["labels"] != IGNORED
        return F.cross_entropy(logits[words].float(), batch["labels"][words], reduction="sum") / words.sum().clamp(min=1)

    def soft(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        """Mean over the first tokens of words, 0 without any."""
        words = batch["labels"] != IGNORED
        return soft_loss(student[words], teacher[words], temperature) if words.any() else student.sum() * 0.0

    def compared(self, logits: np.ndarray, batch: Batch) -> np.ndarray:
        """Return float[words, tags]: those of the first token of each word."""
        return logits[batch["labels"].numpy() != IGNORED]

    def decisions(self, logits: np.ndarray, batch: Batch) -> np.ndarray:
        return self.compared(logits, batch).argmax(-1)

    def predictions(self, split: Dataset, logits: Sequence[np.ndarray]) -> list[list[str]]:
        """Return the tag of every word; OUTSIDE for one that was cut."""
        tags = []
        for places, row in zip(split["places"][:], logits, strict=True):
            best = row.argmax(-1)
            tags.append([OUTSIDE if place == CUT else self.classes[best[place]] for place in places])
        return tags

    def scorers(self, split: Dataset, logits: Sequence[np.ndarray]) -> tuple[int, dict[str, Scorer]]:
        labels = [[self.classes[tag] for tag in tags] for tags in split["label"][:]]
        pairs = list(zip(labels, self.predictions(split, logits), strict=True))
        scorers = {"token_accuracy": _share([(sum(map(str.__eq__, a, b)), len(a)) for a, b in pairs])}
        if _names_entities(self.classes):
            entities = [(set(get_entities(a)), set(get_entities(b))) for a, b in pairs]
            scorers["entity_f1"] = _share([(2 * len(a & b), len(a) + len(b)) for a, b in entities])
        return len(labels), scorers


def _word_at(words: Sequence[str]) -> list[int]:
    """Return the word number of every character of the words joined by spaces; a space counts to the word after it."""
    return [i for i, word in enumerate(words) for _ in f" {word}"][1:]


def entity_in(kind: Any) -> Callable[[Sequence[int]], bool]:
    """Return whether one of a row's tags names something. kind: a `TokenClassification`."""
    outside = {number for number, name in enumerate(kind.classes) if name == OUTSIDE}
    return lambda tags: not outside.issuperset(tags)


def _names_entities(names: Sequence[str]) -> bool:
    return all(name == OUTSIDE or re.fullmatch(r"[BIES]-.+", name) for name in names)


def _share(counts: Sequence[tuple[int, int]]) -> Scorer:
    """Return the scorer: sum of the first counts / sum of the second, or 0. F1 = 2 correct / (expected + predicted)."""
    table = np.array(counts)

    def score(rows: np.ndarray) -> float:
        part, whole = table[rows].sum(0)
        return float(part / whole) if whole else 0.0

    return score
