"""Rows out of files: csv, tsv, tab, jsonl, parquet, txt. One row at a time, nothing guessed, nothing repaired.

What a cell means hangs on its role. Text: text; numbers, truth values and dates as Python writes them; bytes are UTF-8.
A class: the same, but a whole number has no fraction, so that 3 and 3.0 are one class. None, NaN and "" are missing.
Lists and objects are neither: only labels that are lists or objects (and words) are read from them.
"""

import ast
import csv
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pruneonce.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
SUFFIXES = (*DELIMITERS, ".jsonl", ".parquet", ".txt")
UNREAD = (
    ".json",
    ".ndjson",
    ".xlsx",
    ".xls",
    ".ods",
    ".arrow",
    ".feather",
    ".gz",
    ".bz2",
    ".xz",
    ".zst",
    ".zip",
)  # rows, too
FOREIGN = {  # first bytes of a file -> what it is, and what makes rows of it
    b"\x1f\x8b": ("a gzip file", "Unpack it: gunzip < FILE > NEW"),
    b"BZh91AY&SY": ("a bzip2 file", "Unpack it: bunzip2 < FILE > NEW"),
    b"\xfd7zXZ\0": ("an xz file", "Unpack it: unxz < FILE > NEW"),
    b"\x28\xb5\x2f\xfd": ("a zstd file", "Unpack it: unzstd < FILE > NEW"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "Unpack it"),
    b"PK\x03\x04": ("a zip archive or a spreadsheet (xlsx)", "Unpack it (unzip), or save the sheet as CSV in UTF-8"),
    b"\xd0\xcf\x11\xe0": ("a spreadsheet (xls)", "Save the sheet as CSV in UTF-8"),
    b"\xff\xfe\0\0": ("text in UTF-32", "Convert it: iconv -f utf-32 -t utf-8 < FILE > NEW"),
    b"\0\0\xfe\xff": ("text in UTF-32", "Convert it: iconv -f utf-32 -t utf-8 < FILE > NEW"),
    b"\xff\xfe": ("text in UTF-16", "Convert it: iconv -f utf-16 -t utf-8 < FILE > NEW"),
    b"\xfe\xff": ("text in UTF-16", "Convert it: iconv -f utf-16 -t utf-8 < FILE > NEW"),
    b"PAR1": ("a parquet file", "Give it the ending .parquet"),
    b"ARROW1\0\0": ("an Arrow file", "Write its rows as parquet"),
    b"SQLite format 3\0": ("an SQLite database", "Write the table as csv or jsonl"),
    b"version https://git-lfs": ("the pointer of Git LFS, not the file", "Get the file: git lfs pull"),
    b"%PDF-": ("a PDF", "Take its text out first"),
    b"<!doctype html": ("a web page", "Was the address of the file right, and does it want a login? Get the file again"),
    b"<html": ("a web page", "Was the address of the file right, and does it want a login? Get the file again"),
}

Row = dict[str, str]
T = TypeVar("T")


def find_split(folder: Path, split: str) -> Path | None:
    """The file of a split in a source's folder: `train.csv`, `train.parquet`, ... or None if there is none.

    Raises DataError for two, and for one that is not read, such as train.json: it would silently be as if there were none.
    """
    found = [folder / f"{split}{suffix}" for suffix in SUFFIXES if (folder / f"{split}{suffix}").exists()]
    if len(found) > 1:
        raise DataError(f"expected one file for split {split!r} in {folder}, found {[p.name for p in found]}: keep one.")
    others = (name.lower() for name in _names(folder) if name.lower().startswith(f"{split.lower()}."))
    if not found and any(name.endswith((*SUFFIXES, *UNREAD)) for name in others):
        raise _no_split(folder, split)
    return found[0] if found else None


def need_split(folder: Path, split: str) -> Path:
    """The file of a split. Raises DataError if there is none: what is read, and what is there."""
    path = find_split(folder, split)
    if path is None:
        raise _no_split(folder, split)
    return path


def _no_split(folder: Path, split: str) -> DataError:
    return DataError(
        f"expected a file {split}.* in source {folder.name!r}, found {_names(folder)[:12]}. Its ending must be one of "
        f"{' '.join(SUFFIXES)}; of a .json file write every row on a line of its own (jq -c '.[]' FILE > {split}.jsonl)."
    )


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def string(cell: Any) -> str:
    """A cell as text; a missing one (None, NaN) is "".

    Raises DataError for what is no text: lists, objects, bytes that are not UTF-8.
    """
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, str):
        return cell
    if cell is None or (isinstance(cell, float | Decimal) and math.isnan(cell)):
        return ""
    if isinstance(cell, bool | int | float | Decimal | date | time | timedelta):
        return str(cell)
    if isinstance(cell, bytes):
        try:
            return cell.decode()
        except UnicodeDecodeError:
            raise _NoText(cell, "text in UTF-8") from None
    raise _NoText(cell, "text")


def text(cell: Any) -> str:
    """A cell as `string`, stripped."""
    return string(cell).strip()


def name(cell: Any) -> str:
    """A class by one name: as `text`, a whole number without a fraction (3.0 is "3"); "" if it is missing.

    Raises DataError for what is no text, and for an infinite number.
    """
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, float | Decimal) and not math.isnan(cell):
        if math.isinf(cell):
            raise _NoText(cell, "a class")
        return str(int(cell)) if cell == int(cell) else str(cell)
    return text(cell)


def listed(cell: Any) -> list[Any] | None:
    """The values of a list that is written as text, in JSON or as Python prints one; None for what begins with no `[`.

    Raises DataError for a text in brackets that is neither.
    """
    written = text(cell) if isinstance(cell, str | bytes) else ""
    if not re.fullmatch(r"\[.*\]", written, re.DOTALL):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(written)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        # Of ['x' 'y'], as numpy prints an array, Python makes one word: only what it would print itself is a list.
        if isinstance(found, list) and (parse is json.loads or _dense(repr(found)) == _dense(written)):
            return found
    raise DataError(f'expected a list like ["x", "y"], or the values without brackets, found {written[:80]!r}.')


def _dense(written: str) -> str:
    return re.sub(r"\s+", "", written)


def divided(cell: str) -> list[str]:
    """The labels of a text with commas between them.

    Raises DataError where a comma stands inside of brackets or quotes: half of them would be part of a label.
    """
    parts = [part.strip() for part in cell.split(",")]
    for part in parts:
        torn = any(part.count(one) != part.count(other) for one, other in ("()", "[]", "{}"))
        if torn or re.fullmatch(r"b?(['\"]).*\1|\{.*\}|(set|frozenset|array|tuple|list|dict)\(.*\)", part):  # Python's forms
            raise DataError(
                f"expected labels with commas between them, found {cell[:80]!r}: {part!r} would be a label. Write a list, "
                'like ["x", "y"].'
            )
    return parts


class _NoText(DataError):
    """Knows its cell, so that the column can be named where it is known."""

    def __init__(self, cell: Any, wanted: str):
        kinds = {list: "the list", dict: "the object", bytes: "the bytes", float: "the number"}
        shown = f"{kinds.get(type(cell), type(cell).__name__)} {str(cell)[:80]}"
        super().__init__(f"expected {wanted}, found {shown}.")
        self.cell = cell


def read(path: Path, columns: Sequence[str], *, skip_rows: int = 0) -> Iterator[Row]:
    """Each row's `columns` as text, stripped; a missing value is "". Otherwise as `read_cells`."""

    def texts(*cells: Any) -> Row:
        return dict(zip(columns, map(text, cells), strict=True))

    return read_as(path, columns, texts, skip_rows=skip_rows)


def read_as(path: Path, columns: Sequence[str], make: Callable[..., T], *, skip_rows: int = 0) -> Iterator[T]:
    """`make` of the cells of each row's `columns`. Its DataErrors say in which row. Otherwise as `read_cells`."""
    unit = "row" if path.suffix == ".parquet" else "the row that ends in line" if path.suffix in DELIMITERS else "line"
    for number, cells in _numbered(path, columns, skip_rows):
        try:
            yield make(*cells)
        except DataError as error:
            bad = getattr(error, "cell", error)
            column = next((f"column {c!r}, " for c, cell in zip(columns, cells, strict=True) if cell is bad), "")
            raise DataError(f"{error} It stands in {column}{unit} {number} of {path}.") from None


def read_cells(path: Path, columns: Sequence[str], *, skip_rows: int = 0) -> Iterator[dict[str, Any]]:
    """Each row's `columns` as the file has them: numbers, lists and objects in jsonl and parquet, text in the others.

    A .txt file has one column, `text`, a line a row. Classes of a hub's data set (integers in parquet, their names in the
    file's metadata) come by name.
    skip_rows: lines after the header that are not data (Orange's .tab files have two).
    Raises DataError if the file is empty, not UTF-8, cut short, damaged, another format than its ending says, or lacks a
    column or has it twice.
    """
    for _, cells in _numbered(path, columns, skip_rows):
        yield dict(zip(columns, cells, strict=True))


def count(path: Path, columns: Sequence[str], *, skip_rows: int = 0) -> int:
    """How many rows `read` would give; of a parquet file without reading them."""
    if path.suffix != ".parquet":
        return sum(1 for _ in _numbered(path, columns, skip_rows))
    _check_file(path)
    with reading(path):
        table = pq.ParquetFile(path)
        _check_columns(path, columns, table.schema_arrow.names)
        return max(0, table.metadata.num_rows - skip_rows)


def column_bytes(path: Path, column: str) -> int:
    """Bytes of a parquet file's column before compression. Raises DataError for a damaged file."""
    _check_file(path)
    with reading(path):
        table = pq.ParquetFile(path, buffer_size=1 << 16)
        schema, found = table.metadata.schema, 0
        own = [i for i in range(len(schema)) if schema.column(i).path.partition(".")[0] == column]
        for group in range(table.num_row_groups):
            # Of a damaged chunk the next line raises; pyarrow's `column` without it ends the process (25.0: C++ terminate).
            next(table.iter_batches(row_groups=[group], columns=[column], batch_size=1), None)
            found += sum(table.metadata.row_group(group).column(i).total_uncompressed_size for i in own)
        return found


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside is a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise _no_utf_8(path, error) from None
    except Exception as error:  # of a damaged file pyarrow raises some ten classes, KeyError and MemoryError among them
        said = str(error).rstrip(". \n") or type(error).__name__
        raise DataError(f"expected {path.suffix} rows in {path}, found: {said}. Is it whole? Get it again.") from None


def _no_utf_8(path: Path, error: UnicodeDecodeError) -> DataError:
    found = f"found byte {error.object[error.start]:#04x}"
    if path.suffix == ".parquet":
        return DataError(f"expected UTF-8 in {path}, {found} in a text. Is it whole? Write the column anew as UTF-8.")
    with path.open("rb") as file:
        line = next((number for number, line in enumerate(file, 1) if _broken(line)), 1)
    return DataError(
        f"expected UTF-8 in {path}, {found} in line {line}. If it is Latin-1, convert it: "
        "iconv -f latin1 -t utf-8 < FILE > NEW."
    )


def _broken(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return True
    return False


def _numbered(path: Path, columns: Sequence[str], skip_rows: int) -> Iterator[tuple[int, list[Any]]]:
    """The cells of each row, and its number: the line in which it ends; of parquet the row, from 1 on."""
    _check_file(path)
    read_rows = {".jsonl": _jsonl, ".parquet": _parquet, ".txt": _txt}.get(path.suffix, _delimited)
    with reading(path):
        for index, (number, row) in enumerate(read_rows(path, columns)):
            if index >= skip_rows:
                yield number, [row[column] for column in columns]


def _check_file(path: Path) -> None:
    """Raises DataError for a file that cannot be rows: none, an empty one, one whose first bytes are another format's."""
    if path.suffix not in SUFFIXES:
        raise DataError(f"expected one of {', '.join(SUFFIXES)}, found {path.name}.")
    if not path.is_file() or path.stat().st_size == 0:
        found = "an empty file" if path.is_file() else "a folder" if path.is_dir() else "no such file"
        raise DataError(f"expected rows in {path}, found {found}.")
    with reading(path), path.open("rb") as file:
        head = file.read(512)
        file.seek(-min(4, path.stat().st_size), os.SEEK_END)
        parquet = head[:4] == file.read() == b"PAR1" and path.suffix != ".parquet"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for magic, (what, advice) in FOREIGN.items():
        page = magic[:1] == b"<" and start.startswith(magic) and path.suffix != ".txt"  # a text may be a page
        if parquet if magic == b"PAR1" else page or head.startswith(magic):
            raise DataError(f"expected {path.suffix} rows in {path}, found {what}. {advice}.")
    for side, order in enumerate(("be", "le")):  # Latin letters in UTF-16 have a zero byte each
        if path.suffix != ".parquet" and 5 * head[side::2].count(0) > 2 * len(head) > 4 and not head[1 - side :: 2].count(0):
            advice = f"Convert it: iconv -f utf-16{order} -t utf-8 < FILE > NEW"
            raise DataError(f"expected {path.suffix} rows in {path}, found text in UTF-16. {advice}.")


def _delimited(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(sys.maxsize)
    begins, suspects = 1, list[int]()
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.reader(file, delimiter=DELIMITERS[path.suffix], strict=True)
        try:
            header = next(table, [])
            _check_columns(path, columns, header)
            begins = table.line_num + 1
            for fields in table:
                if len(fields) > len(header):  # an unquoted comma moves every field behind it
                    raise DataError(
                        f"expected {len(header)} fields in the row that ends in line {table.line_num} of {path}, found "
                        f"{len(fields)}. Put quotes around a field that holds the delimiter."
                    )
                if table.line_num > begins and _swallows(fields, len(header), DELIMITERS[path.suffix]):
                    suspects.append(begins)
                if fields:
                    yield table.line_num, dict(zip_longest(header, fields))
                begins = table.line_num + 1
        except csv.Error as error:
            never = str(error) == "unexpected end of data"
            found = "a quote that is never closed" if never else f"in line {table.line_num}: {error}"
            raise DataError(
                f"expected {path.suffix} rows in {path}, found {found}, in the row that begins in line {begins}. A quote "
                'inside of a quoted field is written twice: "".'
            ) from None
    if suspects:  # no error: a text may hold lines with commas in them
        print(
            f"\n{path}: {len(suspects)} rows hold a quoted text that reads like rows of the file; the first begins in line "
            f"{suspects[0]}. Is a quote left open there? One that is text is written twice.",
            file=sys.stderr,
        )


def _swallows(fields: Sequence[str], width: int, delimiter: str) -> bool:
    """Whether a field reads, without its quotes, as the end of a row, whole rows and the beginning of one."""
    for place, field in enumerate(fields):
        widths = [line.count(delimiter) + 1 for line in re.split(r"\r\n|\r|\n", field)]
        left = len(fields) - 1 - place  # fields behind the closing quote
        if len(widths) > 1 and width > 1 and widths == [width - place, *[width] * (len(widths) - 2), width - left]:
            return True
    return False


class _Repeated(dict):
    """An object of JSON with a key that stands in it twice; `keys_twice` are these."""

    keys_twice: frozenset[str]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    keys = [key for key, _ in pairs]
    repeated = _Repeated(found)
    repeated.keys_twice = frozenset(key for key in found if keys.count(key) > 1)
    return repeated


def _keys(cell: Any) -> list[str]:
    """The keys of an object, a key that stands in it twice twice."""
    return [*cell, *getattr(cell, "keys_twice", ())] if isinstance(cell, dict) else []


def _jsonl(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                row = _json(line, number, path)
                if not isinstance(row, dict):
                    raise DataError(
                        f"expected an object in line {number} of {path}, found {type(row).__name__}. Write every row on a "
                        "line of its own, e.g. jq -c '.[]' FILE > NEW."
                    )
                _check_columns(path, columns, _keys(row), f"line {number} of ")
                for column in columns:  # of an answer, say
                    _check_columns(path, getattr(row[column], "keys_twice", ()), _keys(row[column]), f"line {number} of ")
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


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    table = pq.ParquetFile(path)
    _check_columns(path, columns, table.schema_arrow.names)
    classes = {column: names for column, names in _classes(table.schema_arrow, path).items() if column in columns}
    rows = (row for batch in table.iter_batches(columns=list(columns)) for row in batch.to_pylist())
    for number, row in enumerate(rows, 1):
        yield number, row | {column: _named(row[column], names, path) for column, names in classes.items()}


def _txt(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    _check_columns(path, columns, ["text"])
    with path.open(encoding="utf-8-sig") as file:
        yield from ((number, {"text": line}) for number, line in enumerate(file, 1))


def _classes(schema: pa.Schema, path: Path) -> dict[str, list[str]]:
    """column -> names of its classes, where `datasets` has written them into a parquet file's metadata."""
    found: dict[str, list[str]] = {}
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {})
        for column, feature in info.get("features", {}).items():
            while isinstance(feature, dict) and "feature" in feature:  # a list of classes
                feature = feature["feature"]
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
                found[column] = [*map(_text_only, feature["names"])]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"expected the columns' classes in the metadata `huggingface` of {path}, as `datasets` writes them, found: "
            f"{type(error).__name__} {error}. Write the file anew."
        ) from None
    return found


def _text_only(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} for a name")
    return value


def _named(value: Any, names: list[str], path: Path) -> Any:
    if isinstance(value, list):
        return [_named(one, names, path) for one in value]
    if value is not None and not isinstance(value, int):
        raise DataError(
            f"expected the number of a class of {names}, as the file's metadata says, found {value!r} in {path}."
        )
    if value is not None and not 0 <= value < len(names):
        raise DataError(
            f"expected a class of {names} in {path}, found {value}: so the hub marks labels that are kept secret. "
            "Take a split whose labels are public."
        )
    return None if value is None else names[value]


def _check_columns(path: Path, wanted: Sequence[str], found: Sequence[str], where: str = "") -> None:
    for column in wanted:
        if column not in found:
            raise DataError(f"expected column {column!r} in {where}{path}, found columns {list(found)}.")
        if list(found).count(column) > 1:
            raise DataError(f"expected column {column!r} once in {where}{path}, found it twice: {list(found)}. Rename one.")
