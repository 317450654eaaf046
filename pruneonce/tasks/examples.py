"""Examples: the rows of a task before they are tokenised. They are cleaned, counted and split."""

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pruneonce.errors import DataError
from pruneonce.text import text_key

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """One row of a task."""

    texts: tuple[str, ...]  # one, or the two of a pair (question and context)
    label: Any  # in the form of the task's kind, hashable; None if it is missing
    stratum: str = ""  # a carved split has the same share of every stratum
    group: str | None = None  # a carved split has all rows of a group, or none; None: the row is a group


@dataclass
class Dropped:
    """The number of rows that are in no split, by reason."""

    empty: int = 0
    duplicate: int = 0
    held_out: int = 0  # it is in validation or test


def texts_key(example: Example) -> tuple[int, ...]:
    """Return a key that is equal for rows whose texts are all equal, up to case and white space."""
    return tuple(map(text_key, example.texts))


def drop_empty(rows: Sequence[Example]) -> tuple[list[Example], Dropped]:
    """Return the rows with all texts and a label, and how many were dropped.

    A test split of the source loses no other rows: published scores were measured with its duplicates.
    """
    full = [row for row in rows if all(row.texts) and row.label is not None]
    return full, Dropped(empty=len(rows) - len(full))


def clean(rows: Sequence[Example], *, exclude: Iterable[Example] = ()) -> tuple[list[Example], Dropped]:
    """Return the rows with all texts and a label, each once and none of `exclude`, and how many were dropped.

    Two pairs are equal if both of their texts are: a context may have questions in several splits.
    """
    held_out = set(map(texts_key, exclude))
    full, dropped = drop_empty(rows)
    unique: dict[tuple[int, ...], Example] = {}
    for row in full:
        key = texts_key(row)
        if key in held_out:
            dropped.held_out += 1
        elif key in unique:
            dropped.duplicate += 1
        else:
            unique[key] = row
    return list(unique.values()), dropped


def carve(rows: Sequence[Example], ratio: float, *, seed: int) -> tuple[list[Example], list[Example]]:
    """Split `rows` in two, (rest, carved): the share `ratio` of every stratum is carved.

    The hash of seed and text chooses the rows, so a new row moves few others. `quotas` gives the number of each stratum. A
    group is never divided: one that is larger than the rest of its stratum's share is not carved.
    """
    strata: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        strata[row.stratum][_group(row)] += 1
    shares = quotas({stratum: groups.total() for stratum, groups in strata.items()}, ratio, seed=seed)
    carved = {(stratum, group) for stratum, groups in strata.items() for group in _choose(groups, shares[stratum], seed)}
    sides: tuple[list[Example], list[Example]] = ([], [])
    for row in rows:
        sides[(row.stratum, _group(row)) in carved].append(row)
    return sides


def _choose(groups: Mapping[str, int], share: int, seed: int) -> list[str]:
    """Return groups with `share` rows together at most. groups: name -> rows.

    It is one group at least, if there are several and `share` is not 0.
    """
    chosen = list[str]()
    for group in sorted(groups, key=lambda group: _hash(seed, group)):
        if groups[group] <= share:
            chosen.append(group)
            share -= groups[group]
    if not chosen and share and len(groups) > 1:
        chosen.append(min(groups, key=lambda group: (groups[group], _hash(seed, group))))
    return chosen


def quotas(sizes: Mapping[str, int], ratio: float, *, seed: int) -> dict[str, int]:
    """Return the number of rows to carve from each stratum: `ratio` of its size, rounded, and never all of it.

    Rounding may miss `ratio` of the whole by one or more. Then the difference goes, one by one, to the stratum that is
    farthest from its share (largest remainder; ties by hash). So the sum is right to the nearest integer.
    """
    counts = {stratum: min(round(ratio * size), size - 1) for stratum, size in sizes.items()}
    missing = round(ratio * sum(sizes.values()) - sum(counts.values()), 6)  # 6: sums of floats are not exact
    if abs(missing) < 1:
        return counts
    step = 1 if missing > 0 else -1

    def place(stratum: str) -> tuple[float, bytes, str]:
        return round(step * (counts[stratum] - ratio * sizes[stratum]), 6), _hash(seed, stratum), stratum

    order = [place(stratum) for stratum in sizes]
    heapq.heapify(order)
    left = abs(round(missing))
    while left and order:
        *_, stratum = heapq.heappop(order)
        if 0 <= counts[stratum] + step < sizes[stratum]:
            counts[stratum] += step
            left -= 1
            heapq.heappush(order, place(stratum))
    return counts


def _hash(seed: int, text: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{text}".encode()).digest()


def _group(row: Example) -> str:
    return "\0".join(row.texts) if row.group is None else row.group


def make_splits(
    rows: Mapping[str, Sequence[Example] | None], *, validation_ratio: float, test_ratio: float, seed: int
) -> tuple[dict[str, list[Example]], dict[str, Dropped]]:
    """Return train, validation, test and further tests by name, and the rows that were dropped of each.

    rows: of every split of the source; None for validation or test that it lacks: a ratio of all train rows is carved.
    A test of the source loses its empty rows only; train and validation lose the rows that are in a test.
    Raises DataError for a split without rows.
    """
    names = ["test", *(name for name in rows if name not in SPLITS)]
    splits, dropped = dict[str, list[Example]](), dict[str, Dropped]()
    for name in names:
        splits[name], dropped[name] = drop_empty(rows[name] or [])
    held_out = list(chain(*splits.values()))
    validation, dropped_validation = clean(rows["validation"] or [], exclude=held_out)
    train, dropped_train = clean(rows["train"] or [], exclude=[*held_out, *validation])
    total = len(train)
    if rows["test"] is None:
        train, splits["test"] = carve(train, test_ratio, seed=seed)
    if rows["validation"] is None:
        train, validation = carve(train, validation_ratio * total / max(1, len(train)), seed=seed)
    splits = {"train": train, "validation": validation, **splits}
    dropped = {"train": dropped_train, "validation": dropped_validation, **dropped}
    empty = [name for name, split in splits.items() if not split]
    if empty:
        raise DataError(f"expected rows in every split, found none in {', '.join(empty)}. {_advice(dropped)}")
    return splits, dropped


def _advice(dropped: Mapping[str, Dropped]) -> str:
    """Return how many rows were dropped, and what to do."""
    counts = [f"{n} {reason} of {split}" for split, d in dropped.items() for reason, n in vars(d).items() if n]
    left_out = f"Left out: {', '.join(counts).replace('_', ' ')}. " if counts else ""
    return f"{left_out}Give the split a file of its own, more rows, or larger ratios."


def shared_second_texts(train: Iterable[Example], *others: Iterable[Example]) -> int:
    """Return how many second texts of pairs (such as contexts) are in train and in another split, up to case and space."""
    one, other = ({text_key(text) for row in rows for text in row.texts[1:]} for rows in (train, chain(*others)))
    return len(one & other)
