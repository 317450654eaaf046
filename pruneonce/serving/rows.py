"""The texts of a file to be answered: csv, tsv, jsonl, or a text a line. `sources` reads more formats, and needs pyarrow."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from pruneonce.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
LINES, OBJECTS = ".txt", ".jsonl"
SUFFIXES = (*DELIMITERS, OBJECTS, LINES)


Columns = Sequence[Sequence[str]]  # for each column its name, and the names that it may also have


def read(path: Path, columns: Columns) -> Iterator[tuple[Any, ...]]:
    """The cells of these columns, row by row. Of the names of a column the first one that is there counts.

    A .txt file has one column and a text a line; `-` is that from standard input.

    Raises DataError for a file that cannot be read, a missing column, a row of another length.
    """
    if str(path) == "-":
        yield from _standard_input()
        return
    if path.suffix not in SUFFIXES:
        raise DataError(f"expected a file that ends in {', '.join(SUFFIXES)}, or - for standard input, found {path}.")
    reader = {LINES: _lines, OBJECTS: _objects}.get(path.suffix, _table)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from reader(file, path, columns)
    except UnicodeDecodeError as error:
        raise DataError(f"expected UTF-8 in {path}, found byte {error.object[error.start]:#x}. Save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"expected a file at {path}, found: {error.strerror}.") from None
    except csv.Error as error:
        raise DataError(
            f"expected fields with {DELIMITERS[path.suffix]!r} between them in {path}, found: {error}."
        ) from None


def _standard_input() -> Iterator[tuple[str]]:
    """A text a line, in UTF-8 whatever the terminal's encoding is."""
    if sys.stdin is None:  # closed by the caller's shell
        raise DataError("expected texts on standard input, found that it is closed. Give a file, or --text.")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")
    try:
        yield from ((line.rstrip("\n"),) for line in sys.stdin)
    except UnicodeDecodeError as error:
        found = f"found byte {error.object[error.start]:#x}. Save it as UTF-8."
        raise DataError(f"expected UTF-8 on standard input, {found}") from None


def _lines(file: TextIO, path: Path, columns: Columns) -> Iterator[tuple[Any, ...]]:
    if len(columns) != 1:
        names = " and ".join(allowed[0] for allowed in columns)
        raise DataError(f"expected the columns {names}, found lines in {path}: take a csv or jsonl file.")
    yield from ((line.rstrip("\r\n"),) for line in file)


def _table(file: TextIO, path: Path, columns: Columns) -> Iterator[tuple[Any, ...]]:
    csv.field_size_limit(sys.maxsize)
    table = csv.reader(file, delimiter=DELIMITERS[path.suffix], strict=True)
    header = next(table, [])
    places = [header.index(name) for name in _names(columns, header, path)]
    for row in table:
        if row and len(row) != len(header):
            raise DataError(
                f"expected {len(header)} fields in line {table.line_num} of {path}, found {len(row)}. Put quotes around a "
                "field that holds the delimiter."
            )
        if row:
            yield tuple(row[place] for place in places)


def _objects(file: TextIO, path: Path, columns: Columns) -> Iterator[tuple[Any, ...]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"expected an object in line {number} of {path}, found no JSON: {error}.") from None
        yield tuple(row[name] for name in _names(columns, list(row) if isinstance(row, dict) else [], path))


def _names(columns: Columns, found: Sequence[str], path: Path) -> list[str]:
    """The name of each column in this file. Raises DataError for one that is missing."""
    names = [next((name for name in allowed if name in found), None) for allowed in columns]
    for name, allowed in zip(names, columns, strict=True):
        if name is None:
            expected = " or ".join(map(repr, dict.fromkeys(allowed)))
            raise DataError(f"expected column {expected} in {path}, found {list(found)[:12]}. Name it: --column NAME.")
    return [name for name in names if name is not None]
