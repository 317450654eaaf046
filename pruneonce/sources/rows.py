"""Readers: the rows of a csv, tsv, tab, jsonl, parquet or txt file, each with its number.

Every reader yields (number, row). The number is the line in which the row ends; in parquet the row, from 1 on.
A row is column -> cell, as the file has it. A reader guesses nothing and repairs nothing.
"""

import csv
import json
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruneonce.errors import DataError
from pruneonce.sources.formats import DELIMITERS

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Rows = Iterator[tuple[int, dict[str, Any]]]


def read_rows(path: Path, columns: Sequence[str]) -> Rows:
    """Yield every row of the file with its number. Raises DataError if it is damaged, or has a column never or twice."""
    reader = {".jsonl": _jsonl, ".parquet": _parquet, ".txt": _txt}.get(path.suffix, _delimited)
    return reader(path, columns)


def check_columns(path: Path, expected: Sequence[str], names: Sequence[str], where: str = "") -> None:
    """Raise DataError unless every expected column is once among the names. where: a place in the file, for the message."""
    for column in expected:
        if column not in names:
            raise DataError(f"expected column {column!r} in {where}{path}, found columns {list(names)}.")
        if list(names).count(column) > 1:
            raise DataError(f"expected column {column!r} once in {where}{path}, found it twice: {list(names)}. Rename one.")


def _txt(path: Path, columns: Sequence[str]) -> Rows:
    check_columns(path, columns, ["text"])
    with path.open(encoding="utf-8-sig") as file:
        yield from ((number, {"text": line}) for number, line in enumerate(file, 1))


def _delimited(path: Path, columns: Sequence[str]) -> Rows:
    csv.field_size_limit(sys.maxsize)
    delimiter, first_line, suspects = DELIMITERS[path.suffix], 1, list[int]()
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(table, [])
            check_columns(path, columns, header)
            first_line = table.line_num + 1
            for fields in table:
                if len(fields) > len(header):  # an unquoted comma moves every field behind it
                    raise DataError(
                        f"expected {len(header)} fields in the row that ends in line {table.line_num} of {path}, found "
                        f"{len(fields)}. Put quotes around a field that holds the delimiter."
                    )
                if table.line_num > first_line and _holds_rows(fields, len(header), delimiter):
                    suspects.append(first_line)
                if fields:
                    yield table.line_num, dict(zip_longest(header, fields))
                first_line = table.line_num + 1
        except csv.Error as error:
            unclosed = str(error) == "unexpected end of data"
            fault = "a quote that is never closed" if unclosed else f"in line {table.line_num}: {error}"
            raise DataError(
                f"expected {path.suffix} rows in {path}, found {fault}, in the row that begins in line {first_line}. A "
                'quote inside of a quoted field is written twice: "".'
            ) from None
    if suspects:  # no error: a text may hold lines with commas in them
        print(
            f"\n{path}: {len(suspects)} rows hold a quoted text that reads like rows of the file; the first begins in line "
            f"{suspects[0]}. Is a quote left open there? One that is text is written twice.",
            file=sys.stderr,
        )


def _holds_rows(fields: Sequence[str], width: int, delimiter: str) -> bool:
    """Return whether a field of several lines reads like the end of a row, whole rows and the start of a row."""
    for place, field in enumerate(fields):
        widths = [line.count(delimiter) + 1 for line in re.split(r"\r\n|\r|\n", field)]
        behind = len(fields) - 1 - place  # fields after the closing quote
        if len(widths) > 1 and width > 1 and widths == [width - place, *[width] * (len(widths) - 2), width - behind]:
            return True
    return False


class _RepeatedKeys(dict):
    """A JSON object that has some keys twice."""

    keys_twice: frozenset[str]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    keys = [key for key, _ in pairs]
    repeated = _RepeatedKeys(row)
    repeated.keys_twice = frozenset(key for key in row if keys.count(key) > 1)
    return repeated


def _keys(cell: Any) -> list[str]:
    """Return the keys of an object; a key that it has twice, twice."""
    return [*cell, *getattr(cell, "keys_twice", ())] if isinstance(cell, dict) else []


def _jsonl(path: Path, columns: Sequence[str]) -> Rows:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row, where = _json(line, number, path), f"line {number} of "
            if not isinstance(row, dict):
                raise DataError(
                    f"expected an object in {where}{path}, found {type(row).__name__}. Write every row on a line of its "
                    "own, e.g. jq -c '.[]' FILE > NEW."
                )
            check_columns(path, columns, _keys(row), where)
            for column in columns:  # an answer is an object
                check_columns(path, getattr(row[column], "keys_twice", ()), _keys(row[column]), where)
            yield number, row


def _json(line: str, number: int, path: Path) -> Any:
    try:
        row = json.loads(line, object_pairs_hook=_object)
        json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair, escaped, is no text
    except json.JSONDecodeError as error:
        raise DataError(
            f"expected .jsonl rows in {path}, found in line {number}, at character {error.colno}: {error.msg}. Every row is "
            "one object of JSON on a line of its own (jq -c writes it so)."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"expected .jsonl rows in {path}, found in line {number}: {error}.") from None
    return row


def parquet_file(path: Path, *, buffer_size: int = 0) -> "pq.ParquetFile":
    """Return the opened file. Raises DataError where pyarrow is not installed: a model answers without it."""
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(
            f"expected pyarrow to read {path}, found none. Install it (pip install pyarrow), or write the rows as csv."
        ) from None
    return pq.ParquetFile(path, buffer_size=buffer_size)


def _parquet(path: Path, columns: Sequence[str]) -> Rows:
    table = parquet_file(path)
    check_columns(path, columns, table.schema_arrow.names)
    classes = {column: names for column, names in _classes(table.schema_arrow, path).items() if column in columns}
    rows = (row for batch in table.iter_batches(columns=list(columns)) for row in batch.to_pylist())
    for number, row in enumerate(rows, 1):
        yield number, row | {column: _class_names(row[column], names, path) for column, names in classes.items()}


def _classes(schema: "pa.Schema", path: Path) -> dict[str, list[str]]:
    """Return column -> names of its classes, from the metadata that `datasets` writes into a parquet file."""
    classes: dict[str, list[str]] = {}
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {})
        for column, feature in info.get("features", {}).items():
            while isinstance(feature, dict) and "feature" in feature:  # a list of classes
                feature = feature["feature"]
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
                if not all(isinstance(name, str) for name in feature["names"]):
                    raise TypeError(f"{feature['names']!r} for names")
                classes[column] = list(feature["names"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"expected the columns' classes in the metadata `huggingface` of {path}, as `datasets` writes them, found: "
            f"{type(error).__name__} {error}. Write the file anew."
        ) from None
    return classes


def _class_names(value: Any, names: list[str], path: Path) -> Any:
    """Return the name of the class with this number; of a list, the list of names."""
    if isinstance(value, list):
        return [_class_names(one, names, path) for one in value]
    if value is None:
        return None
    if not isinstance(value, int):
        raise DataError(
            f"expected the number of a class of {names}, as the file's metadata says, found {value!r} in {path}."
        )
    if not 0 <= value < len(names):
        raise DataError(
            f"expected a class of {names} in {path}, found {value}: on the hub this marks labels that are kept secret. "
            "Take a split whose labels are public."
        )
    return names[value]
