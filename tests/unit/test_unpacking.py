"""What a packed file says of sizes is proved before it is believed: crafted ones take a few MB, or none."""

import hashlib
import io
import re
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from pruneonce.deployment import packing, unpacking
from pruneonce.errors import PackError

MB = 1 << 20


def stream(raw: bytes) -> bytes:
    packed = zlib.compress(raw, 9)
    return struct.pack("<I", len(packed)) + packed


def zeros_packed(size: int, *, width: int = 8, named: int | None = None, digest: bytes = bytes(32)) -> bytes:
    """A packed file of one tensor that is all zeros: a mask, and nothing else. named: bytes, as its end says."""
    segment = struct.pack("<BBI", packing.SPARSE, width, size) + stream(bytes(-(-size // width // 8))) + width * stream(b"")
    return packing.MAGIC + b"\x01" + segment + struct.pack("<BBI", 0, 0, size if named is None else named) + digest


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that Python and numpy held at most while `work` ran."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused(data: bytes, says: str) -> None:
    with pytest.raises(PackError, match=re.escape(says)):
        list(unpacking.unpacked(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (zeros_packed(2**32 - 8), "found more than the 2147483648 bytes of an ONNX file"),
        (zeros_packed(2**28, named=2**20), "an end of 1048576 bytes behind segments of 268435456"),
        (zeros_packed(2**28)[:-1], "ends too early"),
        (zeros_packed(2**28) + b"\0", "or more behind it"),
        (
            packing.MAGIC + b"\x01" + struct.pack("<BBI", packing.DENSE, 1, 2**30) + stream(bytes(2**20)),
            "bytes that cannot be 1073741824 bytes packed",
        ),
        (
            packing.MAGIC + b"\x01" + struct.pack("<BBI", packing.SPARSE, 1, 2**30) + stream(bytes(100)) + stream(b""),
            "bytes that cannot be 134217728 bytes packed",
        ),
    ],
    ids=["too large for ONNX", "another size at the end", "cut", "more behind", "a lie, dense", "a lie, sparse"],
)
def test_a_size_that_is_not_proved_is_refused_before_anything_is_unpacked(data, says):
    assert len(data) < 300_000
    assert peak_of(lambda: refused(data, says)) < MB


def test_zeros_without_end_take_a_few_megabytes_to_unpack(tmp_path):
    """As a sound file they may: 8 KB of it are 64 MB of zeros."""
    size = 64 * MB
    data = zeros_packed(size, digest=hashlib.sha256(bytes(size)).digest())
    assert len(data) < 10_000
    count = 0

    def work() -> None:
        nonlocal count
        count = sum(map(len, unpacking.unpacked(io.BytesIO(data))))

    assert peak_of(work) < 8 * MB
    assert count == size
    assert peak_of(lambda: refused(zeros_packed(size), "that the file's end does not name")) < 2 * size
    (tmp_path / "zeros.packed").write_bytes(data)
    assert peak_of(lambda: unpacking.read(tmp_path / "zeros.packed")) < 1.3 * size + 8 * MB  # once, as it grows


def test_a_dense_tensor_is_unpacked_in_pieces(tmp_path):
    values = np.random.default_rng(0).standard_normal(3 * MB, np.float32)
    raw = values.tobytes()
    end = packing.HEAD.pack(packing.END, 0, len(raw)) + hashlib.sha256(raw).digest()
    data = packing.MAGIC + b"\x01" + packing.encode(raw, 4) + end
    found = hashlib.sha256()

    def work() -> None:
        for piece in unpacking.unpacked(io.BytesIO(data)):
            found.update(piece)

    assert peak_of(work) < 8 * MB < len(raw)
    assert found.digest() == hashlib.sha256(raw).digest()


@pytest.mark.parametrize("size", [1, 7, 8, 9, unpacking.ELEMENTS - 1, unpacking.ELEMENTS + 1, 3 * unpacking.ELEMENTS])
@pytest.mark.parametrize(("width", "zeros"), [(1, 0.9), (2, 0.2), (8, 0.9)])
def test_pieces_meet(size, width, zeros):
    """Around the ends of a piece, and of a byte of the mask."""
    generator = np.random.default_rng(size)
    elements = generator.integers(1, 100, size).astype(f"<u{width}")
    elements[generator.random(size) < zeros] = 0
    raw = elements.tobytes()
    end = packing.HEAD.pack(packing.END, 0, len(raw)) + hashlib.sha256(raw).digest()
    data = packing.MAGIC + b"\x01" + packing.encode(raw, width) + end
    assert b"".join(unpacking.unpacked(io.BytesIO(data))) == raw


@pytest.mark.parametrize("tail", [b"\0", zlib.compress(b"more")])
def test_what_hides_behind_a_stream_is_found(tail):
    """Inside its length, after its own end: more bytes, or a stream of its own."""
    packed = zlib.compress(b"12345678") + tail
    segment = struct.pack("<BBI", packing.DENSE, 1, 8) + struct.pack("<I", len(packed)) + packed
    end = packing.HEAD.pack(packing.END, 0, 8) + hashlib.sha256(b"12345678").digest()
    refused(packing.MAGIC + b"\x01" + segment + end, "with more or less in it than its segment has")


@pytest.mark.parametrize("raw", [b"1234567", b"123456789"])
def test_a_stream_of_another_length_is_found(raw):
    segment = struct.pack("<BBI", packing.DENSE, 1, 8) + stream(raw)
    end = packing.HEAD.pack(packing.END, 0, 8) + hashlib.sha256(raw[:8]).digest()
    refused(packing.MAGIC + b"\x01" + segment + end, "with more or less in it than its segment has")
