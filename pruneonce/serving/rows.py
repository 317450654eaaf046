"""The texts of a file to be answered, read as training reads its rows; or a text a line of standard input."""

import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pruneonce.errors import DataError
from pruneonce.sources import cells, tables

STANDARD_INPUT = Path("-")
LINES = ".txt"

T = TypeVar("T")


def read(path: Path, columns: Mapping[str, Sequence[str]], make: Callable[..., T], *, skip_rows: int) -> Iterator[T]:
    """`make(*texts)` of every row; a list stays one.

    path: a file as `sources.tables` reads it, or `-`: standard input, a text a line.
    columns: for each column the option that names it, and the names that it may have. The first one that is there counts.
    skip_rows: rows at the beginning that are not data.
    Raises DataError for a file that cannot be read, and for a column that is missing. One of `make` gets the row's place.
    """
    from_lines = path == STANDARD_INPUT
    name = "standard input" if from_lines else str(path)
    if len(columns) > 1 and (from_lines or path.suffix == LINES):
        raise DataError(f"expected two columns, found a text a line in {name}: take a csv or jsonl file.")
    there = ["text"] if from_lines else tables.names(path)
    chosen = [_name(option, allowed, there, name) for option, allowed in columns.items()]
    if from_lines:
        yield from _standard_input(make, skip_rows)
    else:
        yield from tables.read_as(path, chosen, lambda *row: make(*map(_text, row)), skip_rows=skip_rows)


def _name(option: str, allowed: Sequence[str], there: Sequence[str], file: str) -> str:
    """The name of a column in this file. Raises DataError if it is missing."""
    for name in allowed:
        if name in there:
            return name
    expected = " or ".join(map(repr, dict.fromkeys(allowed)))
    raise DataError(f"expected column {expected} in {file}, found {list(there)[:12]}. Name it: {option} NAME.")


def _text(cell: Any) -> Any:
    """A cell as training reads it: a number is a text too. A list may be the words of a text."""
    return cell if isinstance(cell, list) else cells.string(cell)


def _standard_input(make: Callable[[str], T], skip_rows: int) -> Iterator[T]:
    """In UTF-8, whatever the terminal's encoding is."""
    if sys.stdin is None:  # closed by the caller's shell
        raise DataError("expected texts on standard input, found that it is closed. Give a file, or --text.")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")
    try:
        for number, line in islice(enumerate(sys.stdin, 1), skip_rows, None):
            try:
                yield make(line.rstrip("\n"))
            except DataError as error:
                raise DataError(f"{error} It stands in line {number} of standard input.") from None
    except UnicodeDecodeError as error:
        found = f"found byte {error.object[error.start]:#x}. Save it as UTF-8."
        raise DataError(f"expected UTF-8 on standard input, {found}") from None
