"""Rows out of files: csv, tsv, tab, jsonl, parquet, txt. One row at a time, nothing guessed, nothing repaired."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pruneonce.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
SUFFIXES = (*DELIMITERS, ".jsonl", ".parquet", ".txt")

Row = dict[str, str]


def find_split(folder: Path, split: str) -> Path | None:
    """The file of a split in a source's folder: `train.csv`, `train.parquet`, ... or None if there is none."""
    found = [folder / f"{split}{suffix}" for suffix in SUFFIXES if (folder / f"{split}{suffix}").exists()]
    if len(found) > 1:
        raise DataError(f"expected one file for split {split!r} in {folder}, found {[p.name for p in found]}: keep one.")
    return found[0] if found else None


def read(path: Path, columns: Sequence[str], *, skip_rows: int = 0) -> Iterator[Row]:
    """Each row's `columns` as text, stripped; a missing value is "". Otherwise as `read_cells`."""
    for row in read_cells(path, columns, skip_rows=skip_rows):
        yield {column: text(cell) for column, cell in row.items()}


def text(cell: Any) -> str:
    """A cell as text, stripped; a missing one is ""."""
    return "" if cell is None else str(cell).strip()


def read_cells(path: Path, columns: Sequence[str], *, skip_rows: int = 0) -> Iterator[dict[str, Any]]:
    """Each row's `columns` as the file has them: numbers, lists and objects in jsonl and parquet, text in the others.

    A .txt file has one column, `text`, a line a row. Classes of a hub's data set (integers in parquet, their names in the
    file's metadata) come by name.
    skip_rows: lines after the header that are not data (Orange's .tab files have two).
    Raises DataError if the file is empty, not UTF-8, cut short, or lacks a column.
    """
    if not path.is_file() or path.stat().st_size == 0:
        raise DataError(f"expected rows in {path}, found {'an empty file' if path.exists() else 'no such file'}.")
    try:
        rows = _rows(path, columns)
        for number, row in enumerate(rows):
            if number >= skip_rows:
                yield {column: row[column] for column in columns}
    except UnicodeDecodeError as error:
        raise DataError(
            f"expected UTF-8 in {path}, found byte {error.object[error.start]:#04x} at offset {error.start} of a read. "
            "Convert it, e.g. iconv -f latin1 -t utf-8."
        ) from None
    except (csv.Error, json.JSONDecodeError, OSError, ValueError) as error:
        raise DataError(f"expected {path.suffix} rows in {path}, found: {error}.") from None


def count(path: Path, columns: Sequence[str], *, skip_rows: int = 0) -> int:
    """How many rows `read` would give; of a parquet file without reading them."""
    if path.suffix != ".parquet":
        return sum(1 for _ in read(path, columns, skip_rows=skip_rows))
    table = pq.ParquetFile(path)
    _check_columns(path, columns, table.schema_arrow.names)
    return table.metadata.num_rows - skip_rows


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict]:
    if path.suffix in DELIMITERS:
        csv.field_size_limit(sys.maxsize)
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, delimiter=DELIMITERS[path.suffix], strict=True)
            _check_columns(path, columns, table.fieldnames or [])
            for row in table:
                if None in row:  # DictReader's word for what is too much: an unquoted comma moves every field behind it
                    raise DataError(
                        f"expected {len(row) - 1} fields in the row that ends in line {table.line_num} of {path}, found "
                        f"{len(row) - 1 + len(row[None])}. Put quotes around a field that holds the delimiter."
                    )
                yield row
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file):
                if line.strip():
                    row = json.loads(line)
                    json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair, escaped, is no text
                    if not isinstance(row, dict):
                        raise DataError(f"expected an object in line {number + 1} of {path}, found {type(row).__name__}.")
                    _check_columns(path, columns, row, f"line {number + 1} of ")
                    yield row
    elif path.suffix == ".parquet":
        table = pq.ParquetFile(path)
        _check_columns(path, columns, table.schema_arrow.names)
        classes = {column: names for column, names in _classes(table.schema_arrow).items() if column in columns}
        for batch in table.iter_batches(columns=list(columns)):
            for row in batch.to_pylist():
                yield row | {column: _named(row[column], names, path) for column, names in classes.items()}
    elif path.suffix == ".txt":
        _check_columns(path, columns, ["text"])
        with path.open(encoding="utf-8-sig") as file:
            yield from ({"text": line} for line in file)
    else:
        raise DataError(f"expected one of {', '.join(SUFFIXES)}, found {path.name}.")


def _classes(schema: pa.Schema) -> dict[str, list[str]]:
    """column -> names of its classes, where `datasets` has written them into a parquet file's metadata."""
    info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {})
    found = {}
    for column, feature in info.get("features", {}).items():
        while isinstance(feature, dict) and "feature" in feature:  # a list of classes
            feature = feature["feature"]
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            found[column] = feature["names"]
    return found


def _named(value: Any, names: list[str], path: Path) -> Any:
    if isinstance(value, list):
        return [_named(one, names, path) for one in value]
    if value is not None and not 0 <= value < len(names):
        raise DataError(
            f"expected a class of {names} in {path}, found {value}: so the hub marks labels that are kept secret. "
            "Take a split whose labels are public."
        )
    return None if value is None else names[value]


def _check_columns(path: Path, wanted: Sequence[str], found, where: str = "") -> None:
    missing = [c for c in wanted if c not in found]
    if missing:
        raise DataError(f"expected column {missing[0]!r} in {where}{path}, found columns {list(found)}.")
