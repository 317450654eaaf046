"""Cells: the text, the class name or the list that one value of a file means.

As a text: a number, a truth value or a date is written as Python writes it; bytes are UTF-8.
As a class: the same, but a whole number has no fraction, so 3 and 3.0 are one class. None, NaN and "" are missing values.
A list or an object is neither a text nor a class.
"""

import ast
import json
import math
import re
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np

from pruneonce.errors import DataError


class CellError(DataError):
    """A cell that is not of the expected type. It keeps the cell: the reader of the file names its column."""

    def __init__(self, cell: Any, expected: str):
        kinds = {list: "the list", dict: "the object", bytes: "the bytes", float: "the number"}
        super().__init__(f"expected {expected}, found {kinds.get(type(cell), type(cell).__name__)} {str(cell)[:80]}.")
        self.cell = cell


def is_missing(cell: Any) -> bool:
    """Return whether the cell is None or NaN."""
    return cell is None or (isinstance(cell, float | Decimal | np.floating) and math.isnan(cell))


def string(cell: Any) -> str:
    """Return the cell as text; "" for None and NaN.

    Raises CellError for a list, an object, and bytes that are not UTF-8.
    """
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, str):
        return cell
    if is_missing(cell):
        return ""
    if isinstance(cell, bool | int | float | Decimal | date | time | timedelta):
        return str(cell)
    if isinstance(cell, bytes):
        try:
            return cell.decode()
        except UnicodeDecodeError:
            raise CellError(cell, "text in UTF-8") from None
    raise CellError(cell, "text")


def text(cell: Any) -> str:
    """Return the cell as `string` does, stripped."""
    return string(cell).strip()


def class_name(cell: Any) -> str:
    """Return the one name of a class: as `text`, but 3.0 is "3"; "" if it is missing.

    Raises CellError for what is no text, and for an infinite number.
    """
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, float | Decimal) and not math.isnan(cell):
        if math.isinf(cell):
            raise CellError(cell, "a class")
        return str(int(cell)) if cell == int(cell) else str(cell)
    return text(cell)


def parse_list(cell: Any) -> list[Any] | None:
    """Return the values of a list that is written as text, in JSON or as Python prints it; None for a text without brackets.

    Raises DataError for a text in brackets that is no such list.
    """
    written = text(cell) if isinstance(cell, str | bytes) else ""
    if not re.fullmatch(r"\[.*\]", written, re.DOTALL):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            values = parse(written)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        # numpy prints ['x' 'y'], which Python reads as one word: accept only what Python prints the same way.
        if isinstance(values, list) and (parse is json.loads or _without_space(repr(values)) == _without_space(written)):
            return values
    raise DataError(f'expected a list like ["x", "y"], or the values without brackets, found {written[:80]!r}.')


def _without_space(written: str) -> str:
    return re.sub(r"\s+", "", written)


def split_labels(written: str) -> list[str]:
    """Return the labels of a text with commas between them.

    Raises DataError if a comma is inside brackets or quotes: each half would become a label.
    """
    labels = [label.strip() for label in written.split(",")]
    for label in labels:
        open_bracket = any(label.count(one) != label.count(other) for one, other in ("()", "[]", "{}"))
        # The form in which Python prints a quoted text, a set, an array and so on.
        if open_bracket or re.fullmatch(r"b?(['\"]).*\1|\{.*\}|(set|frozenset|array|tuple|list|dict)\(.*\)", label):
            raise DataError(
                f"expected labels with commas between them, found {written[:80]!r}: {label!r} would be a label. Write a "
                'list, like ["x", "y"].'
            )
    return labels
