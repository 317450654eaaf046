"""New pairs of texts: the first text of a row with the second text of another. They have no label, but the teacher's answer.

A sparse model has to learn again how texts compare. The rows of a task are few for that, their combinations are many.
Source: Thakur et al. 2021, arXiv:2010.08240 (Augmented SBERT): a larger model labels new pairs of similar texts.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from pruneonce.tasks.splits import second_text

POOL = 1000  # rows that are drawn in a step, at most; the most similar text of these is taken


class NewPairs:
    """Which rows of a batch get the second text of which other row: a pure function of the step.

    The second text is similar to the first one: they share rare tokens.
    """

    def __init__(self, rows: Iterable[Sequence[int]], *, share: float, seed: int, last: int):
        """rows: token ids of each pair. share: of a batch's rows. last: the token that closes a text ([SEP])."""
        firsts, seconds = zip(*(_texts(ids, last) for ids in rows), strict=True)
        vectors = TfidfVectorizer(analyzer=list, binary=True).fit(firsts + seconds)
        self.firsts, self.seconds = vectors.transform(firsts), vectors.transform(seconds)
        self.share, self.seed = share, seed

    def __call__(self, step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of a batch's rows in another order, and of the rows that give the last ones a second text."""
        count, total = round(self.share * len(rows)), self.seconds.shape[0]
        draw = np.random.default_rng([self.seed, step])
        order = draw.permutation(rows)
        new = order[len(rows) - count :]
        size = min(total, POOL, max(2, total // 4))  # other rows for the same text in another step, of a small task as well
        pool = draw.choice(total, size, replace=False)
        likeness = (self.firsts[new] @ self.seconds[pool].T).toarray()
        likeness[new[:, None] == pool] = -1.0  # the row itself
        return order, pool[likeness.argmax(axis=1)]


def joined(first: Mapping[str, Any], second: Mapping[str, Any], last: int) -> Mapping[str, Any]:
    """Return the row `first` with the second text of `second`. last: the token that closes a text."""
    here, there = second_text(first["input_ids"], last), second_text(second["input_ids"], last)
    columns = [name for name in ("input_ids", "token_type_ids") if name in first]
    return {**first, **{name: [*first[name][:here], *second[name][there:]] for name in columns}}


def _texts(ids: Sequence[int], last: int) -> tuple[list[int], list[int]]:
    """The token ids of both texts, without those around and between them."""
    start = second_text(ids, last)
    return list(ids[1 : list(ids).index(last)]), list(ids[start:-1])
