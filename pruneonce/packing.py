"""What is downloaded: an ONNX file whose tensors are stored near their entropy, and the same file back, bit for bit.

ONNX Runtime gains nothing from zeros and stores each in full. Packed, a tensor with zeros is a bitmask and the values that
are not zero; both are Huffman-coded by zlib. Tensors are cut out of the file's bytes and the rest is kept as it is, so that
no serializer has to agree with another one. Both ways run through the file and hold one tensor at a time, in a few copies.

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
LARGE = 1 << 10  # a smaller tensor stays in what lies between: its own streams would cost more than they save

# ONNX's protobuf: numbers of the fields on the way to a tensor's bytes, and the bytes of an element by data type.
GRAPH, INITIALIZER = 7, 5
DATA_TYPE, NAME, RAW_DATA, EXTERNAL_DATA = 2, 8, 9, 13
WIDTHS = {1: 4, 4: 2, 5: 2, 6: 4, 7: 8, 10: 2, 11: 8, 12: 4, 13: 8, 14: 4, 15: 8, 16: 2}  # every other type: 1


def pack(source: Path, target: Path) -> None:
    """Write the packed form of the ONNX file `source`. Raises PackError if it is none, or keeps its weights elsewhere."""
    with _opened(source) as file:
        _write(target, packed(file))


def unpack(source: Path, target: Path) -> None:
    """Write the ONNX file that `source` was packed from, after its sha256 was compared. Raises PackError."""
    with _opened(source) as file:
        _write(target, unpacked(file))


def read(source: Path) -> bytes:
    """The ONNX file that `source` was packed from, in memory. Raises PackError."""
    with _opened(source) as file:
        return b"".join(unpacked(file))


def packed_bytes(source: Path) -> int:
    """How large the packed form of an ONNX file is; nothing is written. Raises PackError."""
    with _opened(source) as file:
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


def unpacked(file: BinaryIO) -> Iterator[bytes]:
    """What was packed, a segment at a time. The last step compares sizes and checksums: nothing counts before it."""
    magic = file.read(len(MAGIC) + 1)
    if magic[:-1] != MAGIC:
        raise PackError(f"expected a file that `pruneonce pack` wrote, found one that begins with {magic!r}.")
    if magic[-1] != VERSION:
        raise PackError(
            f"expected a packed file of version {VERSION}, found version {magic[-1]}. Unpack it with its pruneonce."
        )
    digest, size = hashlib.sha256(), 0
    try:
        while raw := _decode(file):
            digest.update(raw)
            size += len(raw)
            yield raw
        end = file.read(LENGTH.size + digest.digest_size + 1)
    except (_Damaged, zlib.error, MemoryError) as error:
        raise _damaged(f"{error} after {size} bytes") from None
    if end != LENGTH.pack(size) + digest.digest():
        raise _damaged(f"{size} bytes with sha256 {digest.hexdigest()} that the file's end does not name")


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


class _Damaged(Exception):
    """What cannot be in a whole file."""


def _damaged(found: str) -> PackError:
    return PackError(f"expected a whole packed file, found {found}: it is damaged or cut short. Get it again.")


def _decode(file: BinaryIO) -> bytes:
    """The next segment unpacked; empty at the end, whose kind and width alone are read."""
    kind, width = _exactly(file, 2)
    if (kind, width) == (END, 0):
        return b""
    (size,) = LENGTH.unpack(_exactly(file, LENGTH.size))
    if kind not in (DENSE, SPARSE) or width not in (1, 2, 4, 8) or size % width or not size:
        raise _Damaged(f"a segment of kind {kind}, width {width} and size {size}")
    count, mask = size // width, None
    if kind == SPARSE:
        bits = np.frombuffer(_inflate(file, -(-count // 8)), np.uint8)
        mask = np.unpackbits(bits, count=count).astype(bool)
        count = np.count_nonzero(mask)
    planes = [np.frombuffer(_inflate(file, count), np.uint8) for _ in range(width)]
    values = np.stack(planes, axis=1).reshape(-1).view(f"<u{width}")
    if mask is None:
        return values.tobytes()
    elements = np.zeros(mask.size, values.dtype)
    elements[mask] = values
    return elements.tobytes()


def _inflate(file: BinaryIO, size: int) -> bytes:
    """The next stream, which must unpack to `size` bytes and end there."""
    (length,) = LENGTH.unpack(_exactly(file, LENGTH.size))
    unpacker = zlib.decompressobj()
    raw = unpacker.decompress(_exactly(file, length), size + 1)
    if len(raw) != size or not unpacker.eof or unpacker.unused_data:
        raise _Damaged(f"a stream of {length} bytes that are not {size} bytes packed")
    return raw


def _exactly(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise _Damaged("its end")
    return data


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
    stop = file.seek(0, os.SEEK_END)
    graphs = [(start, end) for field, start, end in _fields(file, 0, stop) if field == GRAPH]
    if not graphs:
        raise PackError("expected an ONNX file, found one without a graph.")
    for field, start, end in (field for graph in graphs for field in _fields(file, *graph)):
        if field != INITIALIZER:
            continue
        parts = {field: (start, end) for field, start, end in _fields(file, start, end)}
        name = _bytes(file, *parts.get(NAME, (0, 0))).decode(errors="replace")
        if EXTERNAL_DATA in parts:
            raise PackError(
                f"expected an ONNX file that holds its weights, found {name} in another one. Save it as one file."
            )
        if RAW_DATA in parts:
            start, end = parts[RAW_DATA]
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


def _bytes(file: BinaryIO, start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(stop - start)


def _opened(source: Path) -> BinaryIO:
    if not source.is_file():
        raise PackError(f"expected a file at {source}, found none.")
    return source.open("rb")


def _write(target: Path, parts: Iterator[bytes]) -> None:
    """All of it under another name first: whoever finds `target` finds it whole."""
    part = target.with_name(f"{target.name}.part")
    try:
        with part.open("wb") as file:
            file.writelines(parts)
        part.replace(target)
    except OSError as error:
        raise PackError(f"expected to write {target}, found: {error}.") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
