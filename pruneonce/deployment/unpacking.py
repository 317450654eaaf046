"""Unpack a packed file to the ONNX file that it was made from, bit for bit. `packing` describes the format.

Unpacking takes a few MB of memory, also for a file that lies about its sizes. The heads of all segments are read first:
their sizes must fit the bytes of the file and its end. Then tensors are unpacked one piece at a time. `read` collects
the pieces: it takes the size in the end of the file, 2 GiB at most.
"""

import hashlib
import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pruneonce.deployment import external
from pruneonce.deployment.packing import DENSE, END, LENGTH, MAGIC, SPARSE, VERSION
from pruneonce.deployment.protobuf import LIMIT
from pruneonce.deployment.safe_files import check_file, open_file, write_whole
from pruneonce.errors import PackError

ELEMENTS = 1 << 17  # of a piece of a tensor; a multiple of 8, for its mask
RATIO = 1032  # most bytes that zlib makes of one: 258 from two bits


def unpack(source: Path, target: Path) -> None:
    """Write the ONNX file that `source` was packed from, and check its sha256. target: as in `pack`. Raises PackError."""
    with open_file(source) as file:
        _check_magic(file)  # before the target, which is the source if this is an ONNX file already
        file.seek(0)
        write_whole(target, unpacked(file), file)


def read(source: Path) -> bytes:
    """The ONNX file that `source` was packed from, in memory. Raises PackError."""
    whole = io.BytesIO()
    with open_file(source) as file:
        try:
            whole.writelines(unpacked(file))
        except MemoryError:
            raise PackError(f"expected memory for what is packed in {source}, found {whole.tell()} bytes of it.") from None
    return whole.getvalue()


def model(source: Path) -> Path | bytes:
    """What ONNX Runtime can read: the file itself if it ends in .onnx, else what is packed in it.

    Raises PackError, also for a model that keeps weights outside of its folder.
    """
    check_file(source)
    if source.suffix != ".onnx":
        found = read(source)
        external.check(io.BytesIO(found), None, source)
        return found
    with open_file(source) as file:
        external.check(file, source.parent, source)
    return source


def unpacked(file: BinaryIO) -> Iterator[bytes]:
    """The bytes of the ONNX file, one piece at a time; the checksum is compared after the last one. Raises PackError."""
    _check_magic(file)
    digest, size = hashlib.sha256(), 0
    try:
        segments, sha256 = _heads(file)
        for raw in (raw for segment in segments for raw in _decode(file, segment)):
            digest.update(raw)
            size += len(raw)
            yield raw
    except zlib.error as error:
        raise _damaged(str(error)) from None
    if digest.digest() != sha256:
        raise _damaged(f"{size} bytes with sha256 {digest.hexdigest()} that the file's end does not name")


def _check_magic(file: BinaryIO) -> None:
    magic = file.read(len(MAGIC) + 1)
    if magic[:-1] != MAGIC:
        raise PackError(f"expected a file that `pruneonce pack` wrote, found one that begins with {magic!r}.")
    if magic[-1] != VERSION:
        raise PackError(
            f"expected a packed file of version {VERSION}, found version {magic[-1]}. Unpack it with its pruneonce."
        )


def _damaged(found: str) -> PackError:
    return PackError(f"expected a whole packed file, found {found}: it is damaged or cut short. Get it again.")


@dataclass(frozen=True)
class Segment:
    """A segment of a packed file. streams: (start, bytes) of each. In a sparse segment the first one is the mask."""

    kind: int
    width: int
    size: int
    streams: tuple[tuple[int, int], ...]


def _heads(file: BinaryIO) -> tuple[list[Segment], bytes]:
    """Every segment, and the sha256 at the end; nothing is unpacked.

    Raises PackError if the segments do not add up to the size in the end. Also if a stream is too short for its segment.
    """
    segments: list[Segment] = []
    total = 0
    while (head := _exactly(file, 2)) != bytes([END, 0]):
        segments.append(_head(file, *head))
        total += segments[-1].size
        if total > LIMIT:
            raise _damaged(f"more than the {LIMIT} bytes of an ONNX file")
    (size,) = LENGTH.unpack(_exactly(file, LENGTH.size))
    sha256 = _exactly(file, hashlib.sha256().digest_size)
    if size != total or file.read(1):
        raise _damaged(f"an end of {size} bytes behind segments of {total}, or more behind it")
    return segments, sha256


def _head(file: BinaryIO, kind: int, width: int) -> Segment:
    (size,) = LENGTH.unpack(_exactly(file, LENGTH.size))
    if kind not in (DENSE, SPARSE) or width not in (1, 2, 4, 8) or size % width or not size:
        raise _damaged(f"a segment of kind {kind}, width {width} and size {size}")
    count = size // width
    least = [count] * width if kind == DENSE else [-(-count // 8)] + [0] * width  # bytes of each stream, unpacked
    return Segment(kind, width, size, tuple(_skip(file, least_bytes=n) for n in least))


def _skip(file: BinaryIO, *, least_bytes: int) -> tuple[int, int]:
    """(start, bytes) of the next stream, which has at least `least_bytes` unpacked."""
    (length,) = LENGTH.unpack(_exactly(file, LENGTH.size))
    start = file.tell()
    if least_bytes > RATIO * length:
        raise _damaged(f"a stream of {length} bytes that cannot be {least_bytes} bytes packed")
    if length:
        file.seek(length - 1, os.SEEK_CUR)
        _exactly(file, 1)
    return start, length


def _decode(file: BinaryIO, segment: Segment) -> Iterator[bytes]:
    """The bytes of a segment, one piece at a time."""
    streams = [_Stream(file, start, length) for start, length in segment.streams]
    planes = streams[-segment.width :]
    count = segment.size // segment.width
    for size in (min(ELEMENTS, count - at) for at in range(0, count, ELEMENTS)):
        if segment.kind == DENSE:
            yield _joined(planes, size).tobytes()
        else:
            mask = np.unpackbits(streams[0].take(-(-size // 8)), count=size).astype(bool)
            elements = np.zeros(size, f"<u{segment.width}")
            elements[mask] = _joined(planes, int(np.count_nonzero(mask)))
            yield elements.tobytes()
    for stream in streams:
        stream.check_end()


def _joined(planes: list["_Stream"], count: int) -> np.ndarray:
    """The next `count` elements, one byte of each from every plane."""
    return np.stack([plane.take(count) for plane in planes], axis=1).reshape(-1).view(f"<u{len(planes)}")


class _Stream:
    """A stream in a packed file, unpacked as it is read."""

    def __init__(self, file: BinaryIO, start: int, length: int):
        self.file, self.at, self.stop, self.length = file, start, start + length, length
        self.unpacker = zlib.decompressobj()

    def take(self, size: int) -> np.ndarray:
        """The next `size` bytes. Raises PackError if there are fewer."""
        taken = bytearray()
        while len(taken) < size:
            taken += self._unpack(size - len(taken))
        return np.frombuffer(taken, np.uint8)

    def check_end(self) -> None:
        """Raises PackError unless the stream ends here."""
        more = b""
        while not self.unpacker.eof and not more:
            more = self._unpack(1)
        if more or self.unpacker.unused_data or self.at < self.stop:
            raise self._wrong_size()

    def _unpack(self, size: int) -> bytes:
        """Up to `size` next bytes, at times none. Raises PackError at the end of the stream."""
        data = self.unpacker.unconsumed_tail
        if not data:
            self.file.seek(self.at)
            data = _exactly(self.file, min(ELEMENTS, self.stop - self.at))
            self.at += len(data)
        raw = self.unpacker.decompress(data, size)
        if not raw and not data:
            raise self._wrong_size()
        return raw

    def _wrong_size(self) -> PackError:
        return _damaged(f"a stream of {self.length} bytes with more or less in it than its segment has")


def _exactly(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise _damaged("that it ends too early")
    return data
