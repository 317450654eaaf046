"""The columns of a table of rows, and a guess: which one is the text, which one the label, what kind of task that is.

A guess is by names first, then by content. The text is the column with the longest texts. A label has few values, or is a
number. Where two columns are as good, there is no guess, and the candidates are named.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pruneonce.errors import DataError
from pruneonce.sources import cells, tables
from pruneonce.sources.formats import reading
from pruneonce.sources.rows import read_rows

READ = 5000  # rows that a guess reads
TEXTS = (
    "text",
    "body",
    "content",
    "review",
    "comment",
    "message",
    "sentence",
    "tweet",
    "document",
    "description",
    "abstract",
)
LABELS = (
    *("label", "labels", "class", "category", "target", "sentiment", "rating", "stars", "score", "topic", "intent", "tag"),
    *("tags", "y", "author", "language", "emotion", "grade"),
)
MOST_CLASSES = 100  # of a label; more values are names or numbers
FEW = 20  # whole numbers: up to so many values are classes, such as stars


@dataclass(frozen=True)
class Column:
    """What a column holds in the rows that were read."""

    name: str
    filled: int  # rows in which it is not empty
    distinct: int
    length: float  # mean characters of a filled cell
    words: float  # mean words
    numbers: float  # share of the filled cells that are numbers
    whole: bool  # all numbers are whole
    lists: float  # share of the filled cells that are lists of texts, also written as text
    rows: int

    @property
    def is_text(self) -> bool:
        return self.filled > 0 and self.words >= 2 and self.numbers < 0.5 and self.lists < 0.5

    @property
    def kind(self) -> str | None:
        """The kind of task of which it may be the label; None: of no kind that can be guessed."""
        if self.filled < max(2, 0.5 * self.rows) or self.distinct < 2:
            return None
        if self.lists > 0.5:
            return "multi_label"
        repeated = self.distinct <= min(MOST_CLASSES, self.filled / 2)  # else it names rows
        if self.numbers == 1 and not (self.whole and self.distinct <= FEW):
            return "regression" if not self.whole or self.distinct < self.filled else None  # all differ and whole: an id
        return "classification" if repeated and self.words <= 5 else None


@dataclass(frozen=True)
class Guess:
    """Columns of a task, and the kind of it. text, label: None where several columns are as good, or none is any good."""

    columns: Mapping[str, Column]
    text: str | None
    label: str | None
    texts: tuple[str, ...]  # candidates, the best one first
    labels: tuple[str, ...]

    @property
    def kind(self) -> str | None:
        return None if self.label is None else self.columns[self.label].kind


def read(path: Path, columns: Sequence[str], *, most: int | None = None) -> list[dict[str, Any]]:
    """The first rows of a file, with these columns as the file has them. Raises DataError."""
    with reading(path):
        return [{name: row[name] for name in columns} for _, row in islice(read_rows(path, columns), most)]


def guess(path: Path, *, text: str | None = None, label: str | None = None) -> Guess:
    """Guess the columns of a task. text, label: those that are known. Raises DataError for one that is not there."""
    there = tables.names(path)
    for wanted in (text, label):
        if wanted is not None and wanted not in there:
            raise DataError(f"expected column {wanted!r} in {path}, found columns {there}.")
    rows = read(path, list(dict.fromkeys(there)), most=READ)
    columns = {name: describe(name, [row[name] for row in rows]) for name in there}
    texts = _texts([c for c in columns.values() if c.name != label])
    chosen = text or _clear_text(texts, columns)
    labels = _labels([c for c in columns.values() if c.name != chosen and c.kind is not None])
    return Guess(columns, chosen, label or _clear_label(labels, columns), tuple(texts), tuple(labels))


def describe(name: str, values: Sequence[Any]) -> Column:
    """What the cells of a column are."""
    filled = [written for value in values if (written := _text(value))]
    count = max(1, len(filled))
    numbers = [number for written in filled if (number := _number(written)) is not None]
    return Column(
        name=name,
        filled=len(filled),
        distinct=len(Counter(filled)),
        length=sum(map(len, filled)) / count,
        words=sum(len(written.split()) for written in filled) / count,
        numbers=len(numbers) / count,
        whole=all(number.is_integer() for number in numbers),
        lists=sum(map(_is_list, values)) / count,
        rows=len(values),
    )


def _texts(columns: Iterable[Column]) -> list[str]:
    """Candidates for the text: the longest first."""
    return [c.name for c in sorted(columns, key=lambda c: -c.length) if c.is_text]


def _clear_text(texts: Sequence[str], columns: Mapping[str, Column]) -> str | None:
    """The text, if one candidate alone has a usual name, or is by far the longest."""
    rivals = [name for name in texts if columns[name].length > 0.5 * columns[texts[0]].length]
    named = [name for name in rivals if _words(name) & set(TEXTS)]
    return next((found[0] for found in (named, rivals) if len(found) == 1), None)


def _labels(columns: Iterable[Column]) -> list[str]:
    """Candidates for the label: those with a usual name first, then those of fewer values."""
    return [c.name for c in sorted(columns, key=lambda c: (not _words(c.name) & set(LABELS), c.distinct))]


def _clear_label(labels: Sequence[str], columns: Mapping[str, Column]) -> str | None:
    """The label, if one candidate alone has a usual name, or one alone has classes, or there is only one."""
    named = [name for name in labels if _words(name) & set(LABELS)]
    classes = [name for name in labels if columns[name].kind != "regression"]
    return next((found[0] for found in (named, classes, labels) if len(found) == 1), None)


def _words(name: str) -> set[str]:
    """The words of a column's name: star_rating -> star, rating; reviewText -> review, text."""
    return set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()))


def _text(value: Any) -> str:
    try:
        return cells.text(value)
    except DataError:  # a list or an object
        return str(value)


def _number(written: str) -> float | None:
    try:
        number = float(written)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in written else None


def _is_list(value: Any) -> bool:
    try:
        values = value if isinstance(value, list) else cells.parse_list(value) if isinstance(value, str) else None
    except DataError:
        return False
    return values is not None and all(isinstance(each, str) for each in values)
