"""Kinds of task with classes: the names, found in the labels of the rows, and the classes that a split has no row of."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

from pruneonce.errors import DataError
from pruneonce.tasks.examples import Example
from pruneonce.tasks.protocol import Kind, TaskSettings, label_config

MISSING = {"nan", "<na>", "nat", "#n/a"}  # as numpy, pandas and spreadsheets write a missing value; nobody names a class so
MAYBE_MISSING = {"none", "null", "na", "n/a"}


@dataclass(frozen=True)
class ClassKind(Kind):
    """A kind of task whose labels are classes."""

    classes: list[str]

    @classmethod
    def from_rows(cls, settings: TaskSettings, train: Sequence[Example], *others: Sequence[Example]) -> Self:
        own, other = (chain(*map(cls.classes_of, rows)) for rows in (train, chain(*others)))
        return cls(settings.metric, label_names(own, other, settings.labels))

    @property
    def config(self) -> dict[str, Any]:
        return label_config(self.classes)


def label_names(train: Iterable[str], others: Iterable[str], expected: Sequence[str] | None) -> list[str]:
    """Return the classes, sorted, or `expected` in its order.

    Raises DataError for fewer than two classes and for a label that is not among them: only train shows new ones. With
    `expected` it also raises for a name that stands there twice: the class of the second one would have no row. Without
    it, for a program's word for a missing value, and for two spellings of one number.
    """
    if twice := [name for name, count in Counter(expected or ()).items() if count > 1]:
        raise DataError(
            f"expected every class once in the task's `labels`, found {twice[:5]} more than once. Remove a copy."
        )
    counts = Counter(train)
    names = list(expected) if expected else sorted(counts)
    unknown = sorted({*counts, *others} - set(names))
    if unknown:
        raise DataError(f"expected labels {names}, found also {unknown[:5]}. Fix the rows, or the task's `labels`.")
    if not expected:
        _check_names(counts)
    if len(names) < 2:
        raise DataError(f"expected two classes or more, found {names}. Is this the label column?")
    return names


def _check_names(counts: Mapping[str, int]) -> None:
    """Raise DataError for a name that is not a class but a program's way to write a value."""
    whole = {name: re.sub(r"^([+-]?\d+)\.0+$", r"\1", name) for name in counts}
    advice = "If it is a class, name all classes in the task's `labels`."
    for name in counts:
        if name.casefold() in MISSING:
            raise DataError(
                f"expected classes, found {name!r} in {counts[name]} rows, as programs write a missing value. Leave these "
                f"cells empty (pandas: fillna before astype(str)): they are dropped and counted. {advice}"
            )
        if whole[name] != name and whole[name] in counts:
            raise DataError(f"expected one name for a class, found {whole[name]!r} and {name!r}. Write them alike. {advice}")


def maybe_missing(names: Iterable[str]) -> list[str]:
    """Return the classes that may be a missing value; only the owner of the rows knows."""
    return [name for name in names if name.casefold() in MAYBE_MISSING]


def absent(rows: Iterable[Iterable[str]], classes: Iterable[str]) -> list[str]:
    """Return the classes of which there is no row. rows: the classes of each row."""
    present = {*chain(*rows)}
    return [name for name in classes if name not in present]


def remarks(absent: Mapping[str, Sequence[str]], doubtful: Sequence[str], *, total: int) -> Iterator[str]:
    """Yield a line for every split that lacks some of the `total` classes, and one for names that may be missing values."""
    for split, names in absent.items():
        yield f"{split} lacks {len(names)} of {total} classes, e.g. {', '.join(names[:12])}"
    if doubtful:
        yield (
            f"{list(doubtful)} are taken for classes. Leave the cells of missing labels empty; else name all in the task's "
            "`labels`."
        )
