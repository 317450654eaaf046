"""Where the bytes of each tensor are in an ONNX file, found in its protobuf fields without reading the tensors."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pruneonce.errors import PackError

LIMIT = 1 << 31  # bytes of an ONNX file: protobuf allows no more
NAME_BYTES = 1 << 10  # of a tensor's name, for messages
FIXED_BYTES = {1: 8, 5: 4}  # wire type -> bytes of a number of fixed size

# Protobuf numbers of ONNX's fields: from the model to the tensors, and in a tensor.
GRAPH, INITIALIZER = 7, 5
DATA_TYPE, NAME, RAW_DATA, EXTERNAL_DATA = 2, 8, 9, 13
METADATA, KEY, VALUE = 14, 1, 2
WIDTHS = {1: 4, 4: 2, 5: 2, 6: 4, 7: 8, 10: 2, 11: 8, 12: 4, 13: 8, 14: 4, 15: 8, 16: 2}  # data type -> bytes; others: 1


@dataclass(frozen=True)
class Span:
    """The bytes of a tensor in an ONNX file. width: bytes of an element."""

    name: str
    start: int
    size: int
    width: int


def tensors(file: BinaryIO) -> Iterator[Span]:
    """The initializers of an ONNX file, in its order.

    Raises PackError for a file that is not ONNX, or that keeps its weights in another file.
    """
    stop, graphs = file.seek(0, os.SEEK_END), 0
    if stop > LIMIT:
        raise PackError(f"expected an ONNX file, found {stop} bytes: none has more than {LIMIT}.")
    for field, *graph in _fields(file, 0, stop):
        if field == GRAPH:
            graphs += 1
            yield from (span for field, *at in _fields(file, *graph) if field == INITIALIZER for span in _tensor(file, *at))
    if not graphs:
        raise PackError("expected an ONNX file, found one without a graph.")


def metadata(file: BinaryIO) -> dict[str, str]:
    """The metadata of an ONNX file. Raises PackError for a file that is not ONNX, and for metadata that is no text."""
    entries = [
        {field: (start, end) for field, start, end in _fields(file, *entry)}
        for field, *entry in _fields(file, 0, file.seek(0, os.SEEK_END))
        if field == METADATA
    ]
    return {_text(file, *entry.get(KEY, (0, 0))): _text(file, *entry.get(VALUE, (0, 0))) for entry in entries}


def _text(file: BinaryIO, start: int, end: int) -> str:
    file.seek(start)
    try:
        return file.read(end - start).decode()
    except UnicodeDecodeError as error:
        raise PackError(f"expected text in the metadata of an ONNX file, found: {error}. Get the file again.") from None


def _tensor(file: BinaryIO, start: int, end: int) -> Iterator[Span]:
    """The span of one initializer; none if its values are not stored as raw bytes."""
    parts = {field: (start, end) for field, start, end in _fields(file, start, end)}
    begin, stop = parts.get(NAME, (0, 0))
    file.seek(begin)
    name = file.read(min(stop - begin, NAME_BYTES)).decode(errors="replace")
    if EXTERNAL_DATA in parts:
        raise PackError(f"expected an ONNX file that holds its weights, found {name} in another one. Save it as one file.")
    if RAW_DATA in parts:
        start, end = parts[RAW_DATA]
        width = 1
        if DATA_TYPE in parts:
            file.seek(parts[DATA_TYPE][0])
            width = WIDTHS.get(_varint(file), 1)
        yield Span(name, start, end - start, width if (end - start) % width == 0 else 1)


def _fields(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, stop) of the value of every protobuf field in file[start:stop]."""
    while start < stop:
        file.seek(start)
        number, wire = divmod(_varint(file), 8)
        length = _varint(file) if wire == 2 else FIXED_BYTES.get(wire)
        begin = file.tell()
        if wire == 0:
            _varint(file)
            length = file.tell() - begin
        if length is None or begin + length > stop or not number:
            raise PackError(f"expected an ONNX file, found no protobuf, or not all of it, at byte {begin}.")
        start = begin + length
        yield number, begin, start


def _varint(file: BinaryIO) -> int:
    """A number of seven bits a byte, lowest first. The highest bit says whether another byte follows."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise PackError("expected an ONNX file, found a number in it that does not end.")
