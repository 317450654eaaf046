"""Extractive question answering: the answer is a span of the context. A long context has overlapping windows."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForQuestionAnswering

from pruneonce.batch import Batch
from pruneonce.distillation.losses import soft_loss
from pruneonce.errors import DataError
from pruneonce.sources import cells
from pruneonce.tasks.examples import Example
from pruneonce.tasks.protocol import Kind, TaskSettings, label_config
from pruneonce.tasks.scores import Scorer
from pruneonce.tasks.splits import check_offsets, token_ids

PADDING_LOGIT = -1e6  # probability 0 at any temperature; finite, because 0 times infinity is nan


@dataclass(frozen=True)
class QuestionAnswering(Kind):
    """A span of the context. Metrics: exact_match and f1 of SQuAD's evaluation, against the best of several answers.

    With a null_threshold the metrics are those of SQuAD 2.0's script, else of 1.1's. The two differ in answers that
    normalisation empties, such as "the".
    A row of a split is a window: the question and a part of its context. The first window of a question is number 0.
    """

    stride_tokens: int  # of the context, shared by a window and the one before
    max_answer_tokens: int
    n_best: int  # starts and ends of a window that are paired
    null_threshold: float | None  # no answer if its score is higher by more (SQuAD 2.0); None: every question has one

    architecture: ClassVar[Any] = AutoModelForQuestionAnswering
    outputs: ClassVar[tuple[str, ...]] = ("start_logits", "end_logits")
    columns: ClassVar[dict[str, pa.DataType]] = {
        "window": pa.int32(),
        "answers": pa.list_(pa.string()),
        "label": pa.list_(pa.int32()),  # first and last token of the answer; [CLS] twice if it is not in this window
        "begins": pa.list_(pa.int32()),  # character of the context where a token begins, -1 outside of the context
        "ends": pa.list_(pa.int32()),
    }

    @classmethod
    def example(cls, *row: Any) -> Example:
        """Return the example of question, context and {text: [...], answer_start: [...]}. The context is not stripped.

        Raises DataError for an answer that is not at its character of the context.
        """
        question, context = cells.text(row[0]), cells.string(row[1])
        spans = _spans(row[2])
        for text, start in spans:
            if not text.strip() or start < 0 or context[start : start + len(text)] != text:
                there = context[start : start + len(text)]
                raise DataError(
                    f"expected answer {text!r} at character {start} of its context, found {there!r} (question: "
                    f"{question!r})."
                )
        return Example((question, context), spans, group=context)

    @classmethod
    def from_rows(cls, settings: TaskSettings, train: Sequence[Example], *others: Sequence[Example]) -> Self:
        unanswered = next((row for row in chain(train, *others) if not row.label), None)
        if unanswered and settings.null_threshold is None:
            raise DataError(
                f"expected an answer to every question, found none to {unanswered.texts[0]!r}. If there are questions "
                "without an answer, set the task's `null_threshold` to a number such as 0.0."
            )
        if settings.stride_tokens >= settings.max_tokens // 2 - 4:
            raise DataError(
                f"expected stride_tokens below half of max_tokens {settings.max_tokens}, found {settings.stride_tokens}: a "
                "window holds a question too."
            )
        return cls(
            settings.metric, settings.stride_tokens, settings.max_answer_tokens, settings.n_best, settings.null_threshold
        )

    @property
    def config(self) -> dict[str, Any]:
        return label_config(["start", "end"])

    def encode(self, examples: Sequence[Example], tokenizer, *, max_tokens: int) -> tuple[dict[str, list], int]:
        """Return the windows of all questions, and how many questions were cut, to half of a window at most."""
        check_offsets(tokenizer)
        questions = [_first_tokens(row.texts[0], tokenizer, max_tokens // 2 - 4) for row in examples]
        encoded = tokenizer(
            questions,
            [row.texts[1] for row in examples],
            truncation="only_second",
            max_length=max_tokens,
            stride=self.stride_tokens,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        origin = encoded["overflow_to_sample_mapping"]
        windows = [examples[i] for i in origin]
        inside = [[part == 1 for part in encoded.sequence_ids(w)] for w in range(len(windows))]
        spans = [
            [[offset[side] if part else -1 for offset, part in zip(offsets, parts, strict=True)] for side in (0, 1)]
            for offsets, parts in zip(encoded["offset_mapping"], inside, strict=True)
        ]
        columns: dict[str, list] = {
            "text": [row.texts[0] for row in windows],
            "pair": [row.texts[1] for row in windows],
            "window": (np.arange(len(origin)) - np.searchsorted(origin, origin)).tolist(),  # number in its question
            "answers": [[text for text, _ in row.label] for row in windows],
            "label": [_answer_tokens(row, encoded, w) for w, row in enumerate(windows)],
            "begins": [begins for begins, _ in spans],
            "ends": [ends for _, ends in spans],
            "input_ids": token_ids(encoded, tokenizer),
        }
        if "token_type_ids" in encoded:
            columns["token_type_ids"] = encoded["token_type_ids"]
        return columns, sum(q != row.texts[0] for q, row in zip(questions, examples, strict=True))

    def labels(self, rows: Sequence[Mapping[str, Any]], length: int) -> Tensor:
        """int64[batch, 2]: the answer's first and last token."""
        return torch.tensor([row["label"] for row in rows])

    def hard(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross entropy over positions, mean of start and end."""
        return F.cross_entropy(_no_padding(logits, batch).flatten(0, 1), batch["labels"].flatten())

    def soft(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        """KL over positions, mean of start and end.

        Source: Zafrir et al. 2021, arXiv:2111.05754, transfer to SQuAD.
        """
        return soft_loss(_no_padding(student, batch), _no_padding(teacher, batch), temperature)

    def compared(self, logits: np.ndarray, batch: Batch) -> np.ndarray:
        """Return float[tokens, 2]: start and end at every token but padding."""
        return logits.swapaxes(1, 2)[batch["attention_mask"].numpy().astype(bool)]

    def decisions(self, logits: np.ndarray, batch: Batch) -> np.ndarray:
        tokens = batch["attention_mask"].numpy().astype(bool)
        return np.where(tokens[:, None], logits, -np.inf).argmax(-1).ravel()

    def predictions(self, split: Dataset, logits: Sequence[np.ndarray]) -> list[str]:
        """Return the answer to every question: the best span of all its windows, or "" for no answer.

        Source: the evaluation of Devlin et al. 2019, arXiv:1810.04805, section 4.3: score = start + end.
        """
        best: list[tuple[float, float, str]] = []  # of each question: best score, lowest score of no answer, text
        for row, (start, end) in zip(split.select_columns(["window", "pair", "begins", "ends"]), logits, strict=True):
            score, text = self._best_span(row, start, end)
            null = float(start[0] + end[0])
            if row["window"] == 0:
                best.append((score, null, text))
            else:
                top = max(best[-1], (score, null, text), key=lambda one: one[0])
                best[-1] = (top[0], min(best[-1][1], null), top[2])
        limit = np.inf if self.null_threshold is None else self.null_threshold
        return ["" if null - score > limit else text for score, null, text in best]

    def _best_span(self, row: Mapping[str, Any], start: np.ndarray, end: np.ndarray) -> tuple[float, str]:
        places = np.flatnonzero(np.array(row["begins"]) >= 0)
        first, last = (places[np.argsort(-side[places], kind="stable")[: self.n_best]] for side in (start, end))
        lengths = last[None, :] - first[:, None] + 1
        scores = np.where((lengths >= 1) & (lengths <= self.max_answer_tokens), start[first][:, None] + end[last], -np.inf)
        if not np.isfinite(scores).any():
            return -np.inf, ""
        i, j = np.unravel_index(scores.argmax(), scores.shape)
        return float(scores[i, j]), row["pair"][row["begins"][first[i]] : row["ends"][last[j]]]

    def scorers(self, split: Dataset, logits: Sequence[np.ndarray]) -> tuple[int, dict[str, Scorer]]:
        first = np.flatnonzero(np.array(split["window"][:]) == 0)
        answers = [split["answers"][int(i)] for i in first]
        pairs = list(zip(self.predictions(split, logits), answers, strict=True))
        measures = (exact_match_1, f1_1) if self.null_threshold is None else (exact_match, f1)
        exact, overlap = (np.array([measure(*pair) for pair in pairs]) for measure in measures)
        return len(pairs), {
            "exact_match": lambda rows: float(exact[rows].mean()),
            "f1": lambda rows: float(overlap[rows].mean()),
        }


def _spans(answers: Any) -> tuple[tuple[str, int], ...]:
    """Return (text, first character) of every answer in SQuAD's form; none for empty lists or null."""
    try:
        texts, starts = answers["text"] or [], answers["answer_start"] or []
        if isinstance(texts, str) or any(int(start) != float(start) for start in starts):
            raise TypeError
        return tuple(zip(map(cells.string, texts), map(int, starts), strict=True))
    except (DataError, KeyError, TypeError, ValueError, OverflowError):
        raise DataError(
            "expected answers like {text: [...], answer_start: [...]}, two lists of the same length, found "
            f"{str(answers)[:80]!r}."
        ) from None


def normalise(answer: str) -> str:
    """Return the answer in lower case, without punctuation, articles and double spaces.

    Source: Rajpurkar et al. 2016, arXiv:1606.05250, the official evaluation script.
    """
    bare = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the prediction is an expected answer after normalisation, else 0. Without any it must be empty.

    Source: Rajpurkar et al. 2018, arXiv:1806.03822, the official evaluation script of SQuAD 2.0.
    """
    return float(normalise(prediction) in _expected(answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Return F1 of words against the expected answer of the largest overlap, in [0, 1]; 1 if both are empty (SQuAD 2.0)."""
    return max(_overlap(normalise(prediction).split(), answer.split()) for answer in _expected(answers))


def exact_match_1(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the prediction is one of the answers (at least one) after normalisation, also if both are empty.

    Source: Rajpurkar et al. 2016, arXiv:1606.05250, the official evaluation script of SQuAD 1.1.
    """
    return float(normalise(prediction) in map(normalise, answers))


def f1_1(prediction: str, answers: Sequence[str]) -> float:
    """Return F1 of words against the answer of the largest overlap (at least one answer); 0 without a common word.

    Source: as `exact_match_1`.
    """
    words = normalise(prediction).split()
    return max(_overlap(words, normalise(answer).split()) if words else 0.0 for answer in answers)


def _expected(answers: Sequence[str]) -> list[str]:
    """Return the normalised answers without empty ones, as SQuAD 2.0's script does; [""] if there is none."""
    return [bare for bare in map(normalise, answers) if bare] or [""]


def _overlap(predicted: list[str], expected: list[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    return 2 * (Counter(predicted) & Counter(expected)).total() / (len(predicted) + len(expected))


def _no_padding(logits: Tensor, batch: Batch) -> Tensor:
    return logits.float().masked_fill(batch["attention_mask"][:, None] == 0, PADDING_LOGIT)


def _first_tokens(text: str, tokenizer, count: int) -> str:
    """Return the text of the first `count` tokens."""
    ends = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return text if len(ends) <= count else text[: ends[count - 1][1]]


def _answer_tokens(row: Example, encoded, window: int) -> list[int]:
    """Return the first and last token of the first answer; [CLS] twice if this window does not hold all of it."""
    if row.label:
        text, start = row.label[0]
        left = start + len(text) - len(text.lstrip())
        right = start + len(text.rstrip()) - 1
        first, last = (encoded.char_to_token(window, character, sequence_index=1) for character in (left, right))
        if first is not None and last is not None:
            return [first, last]
    return [0, 0]
