"""The texts of a file to be answered: csv, tsv, jsonl, or a text a line. `sources` reads more formats, and needs pyarrow."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from pruneonce.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
LINES, OBJECTS = ".txt", ".jsonl"
SUFFIXES = (*DELIMITERS, OBJECTS, LINES)


def read(path: Path, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The cells of these columns, row by row. A .txt file has one column and a text a line; `-` is that from standard input.

    Raises DataError for a file that cannot be read, a missing column, a row of another length.
    """
    if str(path) == "-":
        yield from ((line.rstrip("\n"),) for line in sys.stdin)
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


def _lines(file: TextIO, path: Path, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    if len(columns) != 1:
        raise DataError(f"expected the columns {' and '.join(columns)}, found lines in {path}: take a csv or jsonl file.")
    yield from ((line.rstrip("\r\n"),) for line in file)


def _table(file: TextIO, path: Path, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    csv.field_size_limit(sys.maxsize)
    table = csv.reader(file, delimiter=DELIMITERS[path.suffix], strict=True)
    header = next(table, [])
    _check(columns, header, path)
    places = [header.index(column) for column in columns]
    for row in table:
        if row and len(row) != len(header):
            raise DataError(
                f"expected {len(header)} fields in line {table.line_num} of {path}, found {len(row)}. Put quotes around a "
                "field that holds the delimiter."
            )
        if row:
            yield tuple(row[place] for place in places)


def _objects(file: TextIO, path: Path, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"expected an object in line {number} of {path}, found no JSON: {error}.") from None
        _check(columns, list(row) if isinstance(row, dict) else [], path)
        yield tuple(row[column] for column in columns)


def _check(columns: Sequence[str], found: Sequence[str], path: Path) -> None:
    if missing := [column for column in columns if column not in found]:
        raise DataError(f"expected column {missing[0]!r} in {path}, found {list(found)[:12]}. Name it: --column NAME.")
