"""Answers from logits, for every kind of task: the same decisions as in `tasks`, whose modules need torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pruneonce.serving.texts import Row

Answer = dict[str, Any]
DIGITS = 6  # of a probability


def label(logits: np.ndarray, classes: Sequence[str]) -> Answer:
    """logits: float[classes]. The class with the largest one, and the probability of each."""
    shares = _softmax(logits)
    best = int(logits.argmax())
    return {"label": classes[best], "probability": _rounded(shares[best]), "probabilities": _by_name(classes, shares)}


def labels(logits: np.ndarray, classes: Sequence[str]) -> Answer:
    """logits: float[classes]. Every class with a positive one, and the probability of each."""
    shares = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return {
        "labels": [name for name, logit in zip(classes, logits, strict=True) if logit > 0],
        "probabilities": _by_name(classes, shares),
    }


def number(logits: np.ndarray) -> Answer:
    """logits: float[1]."""
    return {"number": float(logits[0])}


def vector(embedding: np.ndarray) -> Answer:
    """embedding: float[width]."""
    return {"embedding": embedding.astype(float).tolist()}


def tags(logits: np.ndarray, classes: Sequence[str], row: Row, words: Sequence[str]) -> Answer:
    """logits: float[tokens, classes] of the words joined by spaces. The tag of each word is that of its first token.

    A word without a token has no tag: it was cut, or the tokenizer drops it.
    """
    word_at = [i for i, word in enumerate(words) for _ in f" {word}"][1:]
    first = dict[int, int]()
    for place, (begin, end) in enumerate(row.offsets[:-1]):  # the last token closes the text
        if begin < end:  # a special token has no characters
            first.setdefault(word_at[end - 1], place)
    places = [first.get(word) for word in range(len(words))]
    found = [None if place is None else classes[int(logits[place].argmax())] for place in places]
    shares = [None if place is None else _rounded(_softmax(logits[place]).max()) for place in places]
    return {"words": list(words), "tags": found, "probabilities": shares}


def span(windows: Sequence[tuple[Row, np.ndarray, np.ndarray]], context: str, kind: Mapping[str, Any]) -> Answer:
    """The best span of all windows of a question, or "" for no answer. windows: (row, start logits, end logits).

    score: start + end of the span, less those of no answer. Source: as `tasks.answering`.
    """
    best = max((_best_span(row, start, end, kind) for row, start, end in windows), key=lambda one: one[0])
    null = min(float(start[0] + end[0]) for _, start, end in windows)
    limit = np.inf if kind["null_threshold"] is None else kind["null_threshold"]
    score, begin, end_ = best
    if null - score > limit or begin < 0:
        begin = end_ = 0
    return {"answer": context[begin:end_], "begin": begin, "end": end_, "score": _rounded(max(score - null, -1e9))}


def _best_span(row: Row, start: np.ndarray, end: np.ndarray, kind: Mapping[str, Any]) -> tuple[float, int, int]:
    """(score, first character, character behind the last one); (-inf, -1, -1) if there is no span."""
    places = np.flatnonzero([part == 1 for part in row.parts])
    first, last = (places[np.argsort(-side[places], kind="stable")[: kind["n_best"]]] for side in (start, end))
    lengths = last[None, :] - first[:, None] + 1
    allowed = (lengths >= 1) & (lengths <= kind["max_answer_tokens"])
    scores = np.where(allowed, start[first][:, None] + end[last], -np.inf)
    if not np.isfinite(scores).any():
        return -np.inf, -1, -1
    i, j = np.unravel_index(scores.argmax(), scores.shape)
    return float(scores[i, j]), row.offsets[first[i]][0], row.offsets[last[j]][1]


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()


def _by_name(classes: Sequence[str], shares: np.ndarray) -> dict[str, float]:
    return {name: _rounded(share) for name, share in zip(classes, shares, strict=True)}


def _rounded(value: float) -> float:
    return round(float(value), DIGITS)
