"""Rows of a task, of whatever kind, before they are tokenised: cleaned, split, nothing lost uncounted."""

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pruneonce.errors import DataError
from pruneonce.text import text_key

SPLITS = ("train", "validation", "test")
MISSING = {"nan", "<na>", "nat", "#n/a"}  # as numpy, pandas and spreadsheets write it; no name that a person gives
MAYBE_MISSING = {"none", "null", "na", "n/a"}


@dataclass(frozen=True)
class Example:
    """One row of a task. label: what its kind makes of the label's cell, hashable; None where there is none."""

    texts: tuple[str, ...]  # one, or the two of a pair (question and context)
    label: Any
    stratum: str = ""  # a split is carved with the same share of each
    group: str | None = None  # a split is carved with all or none of it; None: every row by itself


@dataclass
class Dropped:
    """What did not make it into a split, counted by reason."""

    empty: int = 0
    duplicate: int = 0
    held_out: int = 0  # stands in validation or test


def key(example: Example) -> tuple[int, ...]:
    """Equal for rows whose texts are all equal, up to case and white space."""
    return tuple(map(text_key, example.texts))


def clean(
    rows: Iterable[Example], *, exclude: Iterable[Example] = (), keep_duplicates: bool = False
) -> tuple[list[Example], Dropped]:
    """Rows with all texts and a label, each once, none that stands in `exclude`; what was dropped, counted.

    A pair is equal to another if both of its texts are: a context may have questions in several splits.
    keep_duplicates: for a given test split, whose rows are what published scores were measured on.
    """
    held_out = {key(row) for row in exclude}
    seen: set[tuple[int, ...]] = set()
    kept, dropped = [], Dropped()
    for row in rows:
        own = key(row)
        if not all(row.texts) or row.label is None:
            dropped.empty += 1
        elif own in held_out:
            dropped.held_out += 1
        elif own in seen and not keep_duplicates:
            dropped.duplicate += 1
        else:
            seen.add(own)
            kept.append(row)
    return kept, dropped


def carve(rows: Sequence[Example], ratio: float, *, seed: int) -> tuple[list[Example], list[Example]]:
    """Split `rows` in two, (rest, carved): of each stratum the share `ratio` of its rows, by a hash of seed and text.

    How many of each says `quotas`. Adding a row moves few others: membership hangs on the text alone. A group goes whole;
    one that is larger than what is left of its stratum's share stays.
    """
    strata: dict[str, dict[str, int]] = {}
    for row in rows:
        groups = strata.setdefault(row.stratum, {})
        groups[_group(row)] = groups.get(_group(row), 0) + 1
    shares = quotas({stratum: sum(groups.values()) for stratum, groups in strata.items()}, ratio, seed=seed)
    carved = {(stratum, group) for stratum, groups in strata.items() for group in _chosen(groups, shares[stratum], seed)}
    sides: tuple[list[Example], list[Example]] = ([], [])
    for row in rows:
        sides[(row.stratum, _group(row)) in carved].append(row)
    return sides


def _chosen(groups: Mapping[str, int], share: int, seed: int) -> list[str]:
    """Groups of so many rows each, by lot, of `share` rows together; one at least, if there is another and a share."""
    found = list[str]()
    for group in sorted(groups, key=lambda group: _lot(seed, group)):
        if groups[group] <= share:
            found.append(group)
            share -= groups[group]
    if not found and share and len(groups) > 1:
        found.append(min(groups, key=lambda group: (groups[group], _lot(seed, group))))
    return found


def quotas(sizes: Mapping[str, int], ratio: float, *, seed: int) -> dict[str, int]:
    """How much of each stratum is carved: `ratio` of it to the nearest integer, but never all of it.

    Where that misses `ratio` of the whole by one or more, as it does of many strata of one size, the difference goes, one
    by one, to the stratum that is farthest from its share (largest remainder; ties by lot), so that the whole is right to
    the nearest integer.
    """
    found = {stratum: min(round(ratio * size), size - 1) for stratum, size in sizes.items()}
    missing = round(ratio * sum(sizes.values()) - sum(found.values()), 6)  # 6: what floats add up to is not exact
    if abs(missing) < 1:
        return found
    step = 1 if missing > 0 else -1

    def place(stratum: str) -> tuple[float, bytes, str]:
        return round(step * (found[stratum] - ratio * sizes[stratum]), 6), _lot(seed, stratum), stratum

    order = [place(stratum) for stratum in sizes]
    heapq.heapify(order)
    left = abs(round(missing))
    while left and order:
        *_, stratum = heapq.heappop(order)
        if 0 <= found[stratum] + step < sizes[stratum]:
            found[stratum] += step
            left -= 1
            heapq.heappush(order, place(stratum))
    return found


def _lot(seed: int, text: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{text}".encode()).digest()


def _group(row: Example) -> str:
    return "\0".join(row.texts) if row.group is None else row.group


def make_splits(
    given: Mapping[str, Sequence[Example] | None], *, validation_ratio: float, test_ratio: float, seed: int
) -> tuple[dict[str, list[Example]], dict[str, Dropped]]:
    """train, validation, test and further tests (any other name), and what was dropped of each.

    given: by name; None for a split that the source lacks, which is carved from train, a ratio of all of its rows.
    Given tests are kept whole but for empty rows: what they share with train and validation leaves these, never them.
    Raises DataError for a split without rows.
    """
    names = ["test", *(name for name in given if name not in SPLITS)]
    tests = {name: clean(given[name] or [], keep_duplicates=True) for name in names}
    held_out = [row for kept, _ in tests.values() for row in kept]
    validation, dropped_validation = clean(given["validation"] or [], exclude=held_out)
    train, dropped_train = clean(given["train"] or [], exclude=[*held_out, *validation])
    dropped = {"train": dropped_train, "validation": dropped_validation, **{n: d for n, (_, d) in tests.items()}}
    found, total = {name: kept for name, (kept, _) in tests.items()}, len(train)
    if given["test"] is None:
        train, found["test"] = carve(train, test_ratio, seed=seed)
    if given["validation"] is None:
        train, validation = carve(train, validation_ratio * total / max(1, len(train)), seed=seed)
    found = {"train": train, "validation": validation, **found}
    empty = [name for name, rows in found.items() if not rows]
    if empty:
        raise DataError(f"expected rows in every split, found none in {', '.join(empty)}. {_told(dropped)}")
    return found, dropped


def _told(dropped: Mapping[str, Dropped]) -> str:
    """What became of the rows, and what to do."""
    counts = [f"{n} {reason} of {split}" for split, d in dropped.items() for reason, n in vars(d).items() if n]
    left = f"Left out: {', '.join(counts).replace('_', ' ')}. " if counts else ""
    return f"{left}Give the split a file of its own, more rows, or larger ratios."


def shared_second_texts(train: Iterable[Example], *others: Iterable[Example]) -> int:
    """How many second texts of pairs (contexts, say) stand in train and in another split, up to case and white space."""
    one, other = ({text_key(text) for row in rows for text in row.texts[1:]} for rows in (train, chain(*others)))
    return len(one & other)


def label_names(train: Iterable[str], others: Iterable[str], expected: Sequence[str] | None) -> list[str]:
    """The classes, sorted; `expected` if given must be all of them, and gives their order.

    Raises DataError for a label that training never shows, or that is not among the expected ones; where none are expected
    also for one that is a program's word for a missing value, and for two that are one number.
    """
    counts = Counter(train)
    found = sorted(counts)
    names = list(expected) if expected else found
    unknown = sorted({*found, *others} - set(names))
    if unknown:
        raise DataError(f"expected labels {names}, found also {unknown[:5]}. Fix the rows, or the task's `labels`.")
    if not expected:
        _check_names(counts)
    if len(names) < 2:
        raise DataError(f"expected two classes or more, found {names}. Is this the label column?")
    return names


def _check_names(counts: Mapping[str, int]) -> None:
    """Classes that came about by the way a program wrote them."""
    whole = {name: re.sub(r"^([+-]?\d+)\.0+$", r"\1", name) for name in counts}
    for name in counts:
        how = "If it is a class, name all classes in the task's `labels`."
        if name.casefold() in MISSING:
            raise DataError(
                f"expected classes, found {name!r} in {counts[name]} rows, as programs write a missing value. Leave these "
                f"cells empty (pandas: fillna before astype(str)): they are dropped and counted. {how}"
            )
        if whole[name] != name and whole[name] in counts:
            raise DataError(f"expected one name for a class, found {whole[name]!r} and {name!r}. Write them alike. {how}")


def doubtful(names: Iterable[str]) -> list[str]:
    """Classes that may be a missing value, and may be meant: nobody but the owner of the rows knows."""
    return [name for name in names if name.casefold() in MAYBE_MISSING]


def lacking(rows: Iterable[Iterable[str]], classes: Iterable[str]) -> list[str]:
    """The classes that none of the rows shows; a row is the classes that it shows."""
    shown = {*chain(*rows)}
    return [name for name in classes if name not in shown]
