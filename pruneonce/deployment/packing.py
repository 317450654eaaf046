"""What is downloaded: an ONNX file whose tensors are stored near their entropy. `unpacking` gives it back, bit for bit.

ONNX Runtime gains nothing from zeros and stores each in full. Packed, a tensor with zeros is a bitmask and the values that
are not zero; both are Huffman-coded by zlib. Tensors are cut out of the file's bytes and the rest is kept as it is, so that
no serializer has to agree with another one. Packing holds one tensor at a time, in a few copies.

The format, little-endian:

    magic      8 bytes   89 "PRUNED" and the version, 1
    segment    any number, in the order of the file
      kind     uint8     1 dense, 2 sparse
      width    uint8     bytes of an element: 1, 2, 4 or 8
      size     uint32    bytes unpacked, a multiple of width
      streams            dense: width planes; sparse: the mask, then width planes
    end
      kind     uint8     0
      width    uint8     0
      size     uint32    bytes of the whole file
      sha256   32 bytes  of the whole file; nothing follows

    stream     uint32 length, then so many bytes of zlib (RFC 1950), which ends in a checksum of its own
    mask       a bit an element, first element in the highest bit of the first byte; 1: not all bits of it are zero
    plane i    byte i of every element; in a sparse segment of those that the mask keeps

uint32 is enough: a protobuf file ends at 2 GiB. Only zlib, hashlib and numpy are needed to read it.
"""

import contextlib
import hashlib
import os
import secrets
import stat
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pruneonce.errors import PackError

MAGIC, VERSION = b"\x89PRUNED", 1
END, DENSE, SPARSE = 0, 1, 2
HEAD, LENGTH = struct.Struct("<BBI"), struct.Struct("<I")
PIECE = 1 << 20  # what lies between tensors is read in pieces of so many bytes
LIMIT = 1 << 31  # bytes of an ONNX file
LARGE = 1 << 10  # a smaller tensor stays in what lies between: its own streams would cost more than they save

POINTER = b"version https://git-lfs"

# ONNX's protobuf: numbers of the fields on the way to a tensor's bytes, and the bytes of an element by data type.
GRAPH, INITIALIZER = 7, 5
DATA_TYPE, NAME, RAW_DATA, EXTERNAL_DATA = 2, 8, 9, 13
WIDTHS = {1: 4, 4: 2, 5: 2, 6: 4, 7: 8, 10: 2, 11: 8, 12: 4, 13: 8, 14: 4, 15: 8, 16: 2}  # every other type: 1


def pack(source: Path, target: Path) -> None:
    """Write the packed form of the ONNX file `source`. Raises PackError if it is none, or keeps its weights elsewhere.

    target: a new name, or a regular file, which is replaced once all is written; never a link, a device or a pipe.
    """
    with opened(source) as file:
        write(target, packed(file), file)


def packed_bytes(source: Path) -> int:
    """How large the packed form of an ONNX file is; nothing is written. Raises PackError."""
    with opened(source) as file:
        return sum(map(len, packed(file)))


def packed(file: BinaryIO) -> Iterator[bytes]:
    """The packed form of an ONNX file, a segment at a time."""
    digest, size = hashlib.sha256(), 0
    pieces = list(_pieces(file))
    file.seek(0)
    yield MAGIC + bytes([VERSION])
    for length, width in pieces:
        raw = file.read(length)
        digest.update(raw)
        size += length
        yield encode(raw, width)
    yield HEAD.pack(END, 0, size) + digest.digest()


def encode(raw: bytes, width: int) -> bytes:
    """One segment of elements of `width` bytes each.

    Sparse where more than half of them are zero: a Huffman code cannot spend less than one bit on a symbol, a mask can.
    """
    elements = np.frombuffer(raw, f"<u{width}")
    mask = elements != 0
    if 2 * np.count_nonzero(mask) < mask.size:
        kind, streams = SPARSE, [np.packbits(mask).tobytes(), *_planes(elements[mask])]
    else:
        kind, streams = DENSE, _planes(elements)
    return HEAD.pack(kind, width, len(raw)) + b"".join(_deflated(streams))


def _planes(elements: np.ndarray) -> list[bytes]:
    return [plane.tobytes() for plane in elements.view(np.uint8).reshape(-1, elements.itemsize).T]


def _deflated(streams: list[bytes]) -> Iterator[bytes]:
    """Each by zlib, by whichever strategy is the smaller: weights have no repeats to find, Huffman codes alone suit them.

    All at once, in threads: zlib lets go of Python's lock.
    """
    strategies = (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY)
    with ThreadPoolExecutor() as threads:
        made = [[threads.submit(_deflate, raw, strategy) for strategy in strategies] for raw in streams]
    for tries in made:
        best = min((done.result() for done in tries), key=len)
        yield LENGTH.pack(len(best)) + best


def _deflate(raw: bytes, strategy: int) -> bytes:
    packer = zlib.compressobj(6, memLevel=9, strategy=strategy)
    return packer.compress(raw) + packer.flush()


@dataclass(frozen=True)
class Span:
    """Where the bytes of a tensor lie in an ONNX file. width: bytes of an element."""

    name: str
    start: int
    size: int
    width: int


def tensors(file: BinaryIO) -> Iterator[Span]:
    """The initializers of an ONNX file, in its order, found without reading their bytes.

    Raises PackError for what is no ONNX file, and for one that keeps its weights in another file.
    """
    stop, graphs = file.seek(0, os.SEEK_END), 0
    if stop > LIMIT:
        raise PackError(f"expected an ONNX file, found {stop} bytes: none has more than {LIMIT}.")
    for field, start, end in _fields(file, 0, stop):
        if field == GRAPH:
            graphs += 1
            inside = _fields(file, start, end)
            yield from (span for field, *at in inside if field == INITIALIZER for span in _tensor(file, *at))
    if not graphs:
        raise PackError("expected an ONNX file, found one without a graph.")


def _tensor(file: BinaryIO, start: int, end: int) -> Iterator[Span]:
    """Where the bytes of one initializer lie, if it is stored raw."""
    parts = {field: (start, end) for field, start, end in _fields(file, start, end)}
    begin, stop = parts.get(NAME, (0, 0))
    file.seek(begin)
    name = file.read(min(stop - begin, LARGE)).decode(errors="replace")
    if EXTERNAL_DATA in parts:
        raise PackError(f"expected an ONNX file that holds its weights, found {name} in another one. Save it as one file.")
    if RAW_DATA in parts:
        start, end = parts[RAW_DATA]
        width = 1
        if DATA_TYPE in parts:
            file.seek(parts[DATA_TYPE][0])
            width = WIDTHS.get(_varint(file), 1)
        yield Span(name, start, end - start, width if (end - start) % width == 0 else 1)


def _pieces(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """(bytes, width) of what the file is cut into: large tensors, and pieces of what lies between them."""
    at = 0
    spans = [span for span in tensors(file) if span.size >= LARGE]
    for span in [*spans, Span("the end", file.seek(0, os.SEEK_END), 0, 1)]:
        yield from ((min(PIECE, span.start - i), 1) for i in range(at, span.start, PIECE))
        if span.size:
            yield span.size, span.width
        at = span.start + span.size


def _fields(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, stop) of the value of every protobuf field in file[start:stop]."""
    while start < stop:
        file.seek(start)
        key = _varint(file)
        number, wire = key >> 3, key & 7
        begin = file.tell()
        if wire == 0:
            _varint(file)
            start = file.tell()
        elif wire == 2:
            length = _varint(file)
            begin = file.tell()
            start = begin + length
        elif wire in (1, 5):
            start = begin + (8 if wire == 1 else 4)
        else:
            raise PackError(f"expected an ONNX file, found no protobuf at byte {begin}.")
        if start > stop or not number:
            raise PackError(f"expected an ONNX file, found no protobuf, or not all of it, at byte {begin}.")
        yield number, begin, start


def _varint(file: BinaryIO) -> int:
    """Seven bits a byte, lowest first; the highest bit says that more follow."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise PackError("expected an ONNX file, found a number in it that does not end.")


def check_file(source: Path) -> None:
    """Raises PackError unless `source` is a file, or a link to one: a device or a pipe may never end."""
    try:
        mode = source.stat().st_mode
        if not stat.S_ISREG(mode):
            raise PackError(f"expected a file at {source}, found {_kind(mode)}.")
        with source.open("rb") as file:
            head = file.read(len(POINTER))
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        raise PackError(f"expected a file at {source}, found none: {getattr(error, 'strerror', error)}.") from None
    if head == POINTER:
        raise PackError(f"expected the file itself at {source}, found what Git LFS keeps in its place. Get it: git lfs pull")


def _kind(mode: int) -> str:
    return "a folder" if stat.S_ISDIR(mode) else "a link" if stat.S_ISLNK(mode) else "a device or a pipe"


def opened(source: Path) -> BinaryIO:
    check_file(source)
    return source.open("rb")


def _check_target(target: Path, source: BinaryIO) -> None:
    """Raises PackError for a name that is not free and not that of a regular file, or that of the file that is read."""
    try:
        found = target.lstat()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise PackError(f"expected to write {target}, found: {error}.") from None
    if not stat.S_ISREG(found.st_mode):
        raise PackError(f"expected to write {target}, found {_kind(found.st_mode)} there. Name a file.")
    if os.path.samestat(found, os.fstat(source.fileno())):
        raise PackError(f"expected to write another file than is read, found {target} for both. Name another one.")


def write(target: Path, parts: Iterator[bytes], source: BinaryIO) -> None:
    """All of it under a name of its own first: whoever finds `target` finds it whole."""
    _check_target(target, source)
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            file.writelines(parts)
        part.replace(target)
    except OSError as error:
        raise PackError(f"expected to write {target}, found: {error}.") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
