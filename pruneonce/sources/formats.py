"""Formats: the endings of files with rows, and the errors for a file that is damaged or has another format."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pruneonce.errors import DataError
from pruneonce.files import is_lfs_pointer

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
SUFFIXES = (*DELIMITERS, ".jsonl", ".parquet", ".txt")
FOREIGN_HEADS = {  # first bytes of a file -> its format, and how to make rows of it
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
    b"ARROW1\0\0": ("an Arrow file", "Write its rows as parquet"),
    b"SQLite format 3\0": ("an SQLite database", "Write the table as csv or jsonl"),
    b"%PDF-": ("a PDF", "Extract its text first"),
}
PAGE_HEADS = (b"<!doctype html", b"<html")


def _check_file(path: Path) -> None:
    """Raise DataError unless the file may hold rows: it exists, is not empty and does not begin as another format."""
    if path.suffix not in SUFFIXES:
        raise DataError(f"expected one of {', '.join(SUFFIXES)}, found {path.name}.")
    if not path.is_file() or path.stat().st_size == 0:
        there = "an empty file" if path.is_file() else "a folder" if path.is_dir() else "no such file"
        raise DataError(f"expected rows in {path}, found {there}.")
    if foreign := _foreign_format(path):
        raise DataError(f"expected {path.suffix} rows in {path}, found {foreign[0]}. {foreign[1]}.")


def _foreign_format(path: Path) -> tuple[str, str] | None:
    """Return the format that the first bytes show, and advice; None if they may be rows in the format of the ending."""
    if is_lfs_pointer(path):
        return "the pointer of Git LFS, not the file", "Get the file: git lfs pull"
    with path.open("rb") as file:
        head = file.read(512)
        file.seek(-min(4, path.stat().st_size), os.SEEK_END)
        tail = file.read()
    for start, foreign in FOREIGN_HEADS.items():
        if head.startswith(start):
            return foreign
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(PAGE_HEADS):
        return "a web page", "Check the address and whether it needs a login. Get the file again"
    if path.suffix == ".parquet":
        return None
    return ("a parquet file", "Give it the ending .parquet") if head[:4] == tail == b"PAR1" else _utf_16(head)


def _utf_16(head: bytes) -> tuple[str, str] | None:
    """Return format and advice for Latin letters in UTF-16: each has a zero byte, always on the same side. Else None."""
    for side, order in enumerate(("be", "le")):
        if 5 * head[side::2].count(0) > 2 * len(head) > 4 and not head[1 - side :: 2].count(0):
            return "text in UTF-16", f"Convert it: iconv -f utf-16{order} -t utf-8 < FILE > NEW"
    return None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Check that the file may hold rows, then run the block. Every error becomes a DataError that names the file."""
    try:
        _check_file(path)
        yield
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise _not_utf_8(path, error) from None
    except Exception as error:  # of a damaged file pyarrow raises some ten classes, KeyError and MemoryError among them
        reason = str(error).rstrip(". \n") or type(error).__name__
        raise DataError(f"expected {path.suffix} rows in {path}, found: {reason}. Is it whole? Get it again.") from None


def _not_utf_8(path: Path, error: UnicodeDecodeError) -> DataError:
    """Return the error of a file that is not UTF-8, with the line of the first wrong byte."""
    byte = f"byte {error.object[error.start]:#04x}"
    if path.suffix == ".parquet":
        return DataError(f"expected UTF-8 in {path}, found {byte} in a text. Is it whole? Write the column anew as UTF-8.")
    with path.open("rb") as file:
        line = next((number for number, line in enumerate(file, 1) if line.decode(errors="ignore").encode() != line), 1)
    return DataError(
        f"expected UTF-8 in {path}, found {byte} in line {line}. If it is Latin-1, convert it: "
        "iconv -f latin1 -t utf-8 < FILE > NEW."
    )
