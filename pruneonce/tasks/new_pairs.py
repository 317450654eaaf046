"""New pairs of texts: the first text of a row with the second text of another. They have no label, but the teacher's answer.

A sparse model has to learn again how texts compare. The rows of a task are few for that, their combinations are many.
Source: Thakur et al. 2021, arXiv:2010.08240 (Augmented SBERT): a larger model labels new pairs of similar texts.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from pruneonce.tasks.splits import between_texts

POOL = 1000  # rows that are drawn in a step, at most; the most similar text of these is taken


class NewPairs:
    """Which rows of a batch get the second text of which other row: a pure function of the step.

    The second text is similar to the first one: they share rare tokens. No row has the new pair, unless all drawn rows give
    a known one.
    """

    def __init__(self, rows: Iterable[Sequence[int]], *, share: float, seed: int, last: int):
        """rows: token ids of each pair. share: of a batch's rows. last: the token that closes a text ([SEP])."""
        firsts, seconds = zip(*(_texts(ids, last) for ids in rows), strict=True)
        vectors = TfidfVectorizer(analyzer=list, binary=True).fit(firsts + seconds)
        self.firsts, self.seconds = vectors.transform(firsts), vectors.transform(seconds)
        numbers: dict[tuple[int, ...], int] = {}
        self.first, self.second = (
            np.array([numbers.setdefault(t, len(numbers)) for t in side]) for side in (firsts, seconds)
        )
        self.known = np.unique(self._pairs(self.first, self.second))
        self.share, self.seed = share, seed

    def __call__(self, step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of a batch's rows in another order, and of the rows that give the last ones a second text."""
        total = len(self.first)
        draw = np.random.default_rng([self.seed, step, 1])  # 1: the order of the rows is drawn from [seed, epoch]
        count = int(self.share * len(rows) + draw.random())  # a fraction of a row: by chance one more
        order = draw.permutation(rows)
        new = order[len(rows) - count :]
        size = min(total, POOL, max(2, total // 4))  # other rows for the same text in another step, of a small task as well
        pool = draw.choice(total, size, replace=False)
        likeness = (self.firsts[new] @ self.seconds[pool].T).toarray()
        likeness += 1e-9 * draw.random(likeness.shape)  # which of equally similar ones is by chance
        first, second = self.first[new, None], self.second[pool]
        likeness[self._is_known(self._pairs(first, second)) | (first == second)] -= 2.0
        return order, pool[likeness.argmax(axis=1)]

    def _is_known(self, pairs: np.ndarray) -> np.ndarray:
        """Whether a row has the pair: as `np.isin`, which sorts all rows in every step: 200 times as long for 364,000."""
        return self.known[np.searchsorted(self.known, pairs).clip(max=len(self.known) - 1)] == pairs

    def _pairs(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """A number for each pair of two texts' numbers."""
        return first * (2 * len(self.first)) + second


def joined(first: Mapping[str, Any], second: Mapping[str, Any], last: int) -> Mapping[str, Any]:
    """Return the row `first` with the second text of `second`. last: the token that closes a text."""
    (_, here), (_, there) = (between_texts(row["input_ids"], last) for row in (first, second))
    columns = [name for name in ("input_ids", "token_type_ids") if name in first]
    return {**first, **{name: [*first[name][:here], *second[name][there:]] for name in columns}}


def _texts(ids: Sequence[int], last: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The token ids of both texts, without those around and between them."""
    close, second = between_texts(ids, last)
    return tuple(ids[1:close]), tuple(ids[second:-1])
