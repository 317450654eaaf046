"""Pack an ONNX file for download: its tensors stored near their entropy. `unpacking` gives it back, bit for bit.

ONNX Runtime stores zeros in full. Packed, a tensor with zeros is a bitmask and the other values. zlib codes both with
Huffman codes. All bytes between the tensors stay as they are, so no serializer has to write the same file
again. Packing holds one tensor at a time, in a few copies.

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
      sha256   32 bytes  of the whole file; the last bytes of the packed file

    stream     uint32 length, then that number of bytes of zlib (RFC 1950), which end in a checksum
    mask       one bit for an element, first element in the highest bit of the first byte; 1: not all its bits are zero
    plane i    byte i of every element; in a sparse segment only of elements whose mask is 1

uint32 is enough: a protobuf file ends at 2 GiB. A reader needs zlib, hashlib and numpy.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pruneonce.deployment.protobuf import Span, tensors
from pruneonce.deployment.safe_files import open_file, write_whole
from pruneonce.errors import PackError

MAGIC, VERSION = b"\x89PRUNED", 1
END, DENSE, SPARSE = 0, 1, 2
HEAD, LENGTH = struct.Struct("<BBI"), struct.Struct("<I")
PIECE = 1 << 20  # bytes of a segment between tensors, at most
LARGE = 1 << 10  # bytes of a tensor with a segment of its own; the streams of a smaller one cost more than they save


def pack(source: Path, target: Path) -> None:
    """Write the packed form of the ONNX file `source`.

    target: a new name, or a regular file, which is replaced when all bytes are written.
    Raises PackError for a file that is not ONNX, keeps its weights in another file, or cannot be written.
    """
    with open_file(source) as file:
        if file.read(len(MAGIC)) == MAGIC:
            raise PackError(f"expected an ONNX file, found {source}, which is packed already.")
        file.seek(0)
        write_whole(target, packed(file), file)


def packed_bytes(source: Path) -> int:
    """Size of the packed form of an ONNX file; nothing is written. Raises PackError."""
    with open_file(source) as file:
        return sum(map(len, packed(file)))


def packed(file: BinaryIO) -> Iterator[bytes]:
    """The packed form of an ONNX file, one segment at a time."""
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


def _pieces(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """(bytes, width) of every segment: large tensors, and the bytes between them."""
    at = 0
    spans = [span for span in tensors(file) if span.size >= LARGE]
    end = Span("", start=file.seek(0, os.SEEK_END), size=0, width=1)
    for span in [*spans, end]:
        yield from ((min(PIECE, span.start - i), 1) for i in range(at, span.start, PIECE))
        if span.size:
            yield span.size, span.width
        at = span.start + span.size


def encode(raw: bytes, width: int) -> bytes:
    """One segment of elements of `width` bytes.

    Sparse if more than half of the elements are zero. A Huffman code spends at least a bit on each symbol; a mask can
    spend less.
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
    """Each stream by zlib, with the strategy that gives fewer bytes: weights seldom repeat, so Huffman codes alone suit.

    Threads run in parallel, because zlib releases Python's lock.
    """
    strategies = (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY)
    with ThreadPoolExecutor() as threads:
        jobs = [[threads.submit(_deflate, raw, strategy) for strategy in strategies] for raw in streams]
    for tries in jobs:
        best = min((job.result() for job in tries), key=len)
        yield LENGTH.pack(len(best)) + best


def _deflate(raw: bytes, strategy: int) -> bytes:
    packer = zlib.compressobj(6, memLevel=9, strategy=strategy)
    return packer.compress(raw) + packer.flush()
