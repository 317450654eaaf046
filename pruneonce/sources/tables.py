"""Tables: the file of each split in a source's folder, and its rows one by one."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pruneonce.errors import DataError
from pruneonce.sources import cells
from pruneonce.sources.formats import DELIMITERS, SUFFIXES, reading
from pruneonce.sources.rows import check_columns, parquet_file, read_rows

# Endings of files that hold rows too, but are not read.
NOT_READ = (".json", ".ndjson", ".xlsx", ".xls", ".ods", ".arrow", ".feather", ".gz", ".bz2", ".xz", ".zst", ".zip")

T = TypeVar("T")


def find_split(folder: Path, split: str) -> Path | None:
    """Return the file of a split in a source's folder (`train.csv`, `train.parquet`, ...), or None.

    Raises DataError for two such files, and for a file that is not read, such as train.json.
    """
    paths = [path for suffix in SUFFIXES if (path := folder / f"{split}{suffix}").exists()]
    if len(paths) > 1:
        raise DataError(f"expected one file for split {split!r} in {folder}, found {[p.name for p in paths]}: keep one.")
    others = (name.lower() for name in _names(folder) if name.lower().startswith(f"{split.lower()}."))
    if not paths and any(name.endswith((*SUFFIXES, *NOT_READ)) for name in others):
        raise _no_split(folder, split)
    return paths[0] if paths else None


def need_split(folder: Path, split: str) -> Path:
    """Return the file of a split. Raises DataError if there is none."""
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


def names(path: Path) -> list[str]:
    """Return the columns of a file. Raises DataError for a file that cannot be read, or without rows."""
    with reading(path):
        if path.suffix == ".parquet":
            return [name for name in parquet_file(path).schema_arrow.names if name]
        first = next(read_rows(path, []), None)
        if first is None:
            raise DataError(f"expected rows in {path}, found none.")
        return [name for name in first[1] if name]


def read(path: Path, columns: Sequence[str], *, skip_rows: int = 0) -> Iterator[dict[str, str]]:
    """Yield column -> text of every row, stripped; "" for a missing value. Arguments and errors as for `read_as`."""

    def texts(*row: Any) -> dict[str, str]:
        return dict(zip(columns, map(cells.text, row), strict=True))

    return read_as(path, columns, texts, skip_rows=skip_rows)


def read_as(path: Path, columns: Sequence[str], make: Callable[..., T], *, skip_rows: int = 0) -> Iterator[T]:
    """Yield `make(*cells)` of every row, with the cells of `columns` as the file has them.

    Cells of jsonl and parquet are numbers, lists and objects too. A .txt file has one column, `text`, and a row a line.
    Classes of a hub's data set are numbers in parquet: `make` gets their names.

    skip_rows: lines after the header that are not data (Orange's .tab files have two).
    Raises DataError for a file that is damaged or has another format, and for a column that is missing or there twice. A
    DataError of `make` gets the place of the row.
    """
    unit = "row" if path.suffix == ".parquet" else "the row that ends in line" if path.suffix in DELIMITERS else "line"
    for number, row in _numbered(path, columns, skip_rows):
        try:
            yield make(*row)
        except DataError as error:
            bad = getattr(error, "cell", error)
            column = next((f"column {c!r}, " for c, cell in zip(columns, row, strict=True) if cell is bad), "")
            raise DataError(f"{error} It stands in {column}{unit} {number} of {path}.") from None


def count(path: Path, columns: Sequence[str], *, skip_rows: int = 0) -> int:
    """Return the number of rows that `read` yields; a parquet file is not read for it."""
    if path.suffix != ".parquet":
        return sum(1 for _ in _numbered(path, columns, skip_rows))
    with reading(path):
        table = parquet_file(path)
        check_columns(path, columns, table.schema_arrow.names)
        return max(0, table.metadata.num_rows - skip_rows)


def column_bytes(path: Path, column: str) -> int:
    """Return the bytes of a parquet file's column before compression. Raises DataError for a damaged file."""
    with reading(path):
        table = parquet_file(path, buffer_size=1 << 16)
        schema, size = table.metadata.schema, 0
        own = [i for i in range(len(schema)) if schema.column(i).path.partition(".")[0] == column]
        for group in range(table.num_row_groups):
            # Raises for a damaged chunk. Without it pyarrow 25.0 ends the process in `column` (C++ terminate).
            next(table.iter_batches(row_groups=[group], columns=[column], batch_size=1), None)
            size += sum(table.metadata.row_group(group).column(i).total_uncompressed_size for i in own)
        return size


def _numbered(path: Path, columns: Sequence[str], skip_rows: int) -> Iterator[tuple[int, list[Any]]]:
    """Yield the number of every row and its cells in the order of `columns`."""
    with reading(path):
        for index, (number, row) in enumerate(read_rows(path, columns)):
            if index >= skip_rows:
                yield number, [row[column] for column in columns]
