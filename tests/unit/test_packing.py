"""The packed file: its bytes worked by hand, every kind of damage, what is no ONNX file."""

import hashlib
import io
import itertools
import re
import struct
import tracemalloc
import zlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pruneonce.deployment import packing, unpacking
from pruneonce.errors import PackError


def sparse_weight(rows=64, columns=48, zeros=0.85, seed=0):
    generator = np.random.default_rng(seed)
    weight = generator.integers(-127, 128, (rows, columns)).astype(np.int8)
    return np.where(generator.random(weight.shape) < zeros, np.int8(0), weight)


def write_model(path, **tensors):
    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(array, name) for name, array in tensors.items()])
    onnx.save(helper.make_model(graph), path)
    return path


@pytest.fixture
def model(tmp_path):
    """An ONNX file with a sparse int8 matrix, a dense float one and a small one."""
    table = np.random.default_rng(1).standard_normal((40, 30), np.float32)
    return write_model(tmp_path / "model.onnx", weight=sparse_weight(), table=table, bias=np.ones(5, np.float32))


@pytest.fixture
def archive(model):
    packing.pack(model, model.with_suffix(".packed"))
    return model.with_suffix(".packed")


def by_hand(data: bytes) -> bytes:
    """The ONNX file out of a packed one, by the format's description and one element at a time."""
    assert data[:8] == b"\x89PRUNED\x01"
    at, out = 8, b""

    def stream() -> bytes:
        nonlocal at
        (length,) = struct.unpack_from("<I", data, at)
        at += 4 + length
        return zlib.decompress(data[at - length : at])

    while True:
        kind, width, size = struct.unpack_from("<BBI", data, at)
        at += 6
        if kind == 0:
            assert (width, size, data[at:]) == (0, len(out), hashlib.sha256(out).digest())
            return out
        bits = "".join(f"{byte:08b}" for byte in stream()) if kind == 2 else "1" * (size // width)
        planes = [iter(stream()) for _ in range(width)]
        for bit in bits[: size // width]:
            out += bytes(next(plane) for plane in planes) if bit == "1" else bytes(width)


def segments(data: bytes) -> list[tuple[int, int, int]]:
    """(kind, width, size) of every segment."""
    at, found = 8, []
    while data[at]:
        kind, width, size = struct.unpack_from("<BBI", data, at)
        found.append((kind, width, size))
        at += 6
        for _ in range(width + (kind == 2)):
            at += 4 + struct.unpack_from("<I", data, at)[0]
    return found


def test_the_format_is_what_the_docstring_says(model, archive):
    assert by_hand(archive.read_bytes()) == model.read_bytes()


def test_tensors_are_told_apart(model, archive):
    found = segments(archive.read_bytes())
    kinds = {(kind, width) for kind, width, _ in found}
    assert [(k, w, s) for k, w, s in found if s in (64 * 48, 4 * 40 * 30)] == [(2, 1, 64 * 48), (1, 4, 4 * 40 * 30)]
    assert kinds == {(1, 1), (2, 1), (1, 4)}
    assert sum(size for _, _, size in found) == model.stat().st_size


def test_a_segment_worked_by_hand():
    raw = bytes([0, 0, 5, 0, 0, 0, 0, 0, 0, 255])
    made = packing.encode(raw, 1)
    assert made[:6] == struct.pack("<BBI", 2, 1, 10)
    (length,) = struct.unpack_from("<I", made, 6)
    assert zlib.decompress(made[10 : 10 + length]) == bytes([0b00100000, 0b01000000])
    assert zlib.decompress(made[14 + length :]) == bytes([5, 255])


def test_minus_zero_is_not_zero():
    values = np.array([0.0, -0.0, 0.0, 0.0, 0.0, 1.5, 0.0, 0.0], np.float32)
    made = packing.encode(values.tobytes(), 4)
    assert made[0] == packing.SPARSE
    end = packing.HEAD.pack(0, 0, values.nbytes) + hashlib.sha256(values.tobytes()).digest()
    assert b"".join(unpacking.unpacked(io.BytesIO(b"\x89PRUNED\x01" + made + end))) == values.tobytes()


def test_both_ways_are_exact_and_deterministic(model, archive, tmp_path):
    unpacking.unpack(archive, tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == model.read_bytes() == unpacking.read(archive)
    packing.pack(tmp_path / "back.onnx", tmp_path / "again.packed")
    assert (tmp_path / "again.packed").read_bytes() == archive.read_bytes()
    assert packing.packed_bytes(model) == archive.stat().st_size < model.stat().st_size
    assert not list(tmp_path.glob("*.part"))


def test_a_tensor_that_is_not_stored_raw_stays_where_it_is(tmp_path):
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [400], np.arange(400.0))
    assert not tensor.raw_data
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [], [tensor])), path)
    packing.pack(path, tmp_path / "p")
    assert unpacking.read(tmp_path / "p") == path.read_bytes()


def test_pieces_are_bounded(model, monkeypatch):
    monkeypatch.setattr(packing, "PIECE", 20)
    with model.open("rb") as file:
        pieces = list(packing._pieces(file))
    assert sum(length for length, _ in pieces) == model.stat().st_size
    assert max(length for length, _ in pieces if length not in (64 * 48, 4 * 40 * 30)) == 20


def test_memory_is_that_of_one_tensor(tmp_path):
    """45 tensors of 256 KiB: a few copies of one are in memory at a time (the threads' turns decide), never all."""
    path = write_model(tmp_path / "m.onnx", **{f"w{i}": sparse_weight(512, 512, seed=i) for i in range(45)})
    peaks = []
    for work, source, target in ((packing.pack, "m.onnx", "m.packed"), (unpacking.unpack, "m.packed", "back.onnx")):
        tracemalloc.start()
        work(tmp_path / source, tmp_path / target)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 12 * 512 * 512 < path.stat().st_size / 3


def test_every_flipped_byte_is_found(archive):
    """Magic, heads, lengths, streams, end: each byte of a small file, changed by one bit, and by all."""
    data = archive.read_bytes()
    for at, flip in itertools.product(range(0, len(data)), (0x01, 0xFF)):
        damaged = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
        with pytest.raises(PackError):
            list(unpacking.unpacked(io.BytesIO(damaged)))
    assert len(data) > 3000


def test_every_cut_is_found(archive):
    data = archive.read_bytes()
    for length in range(len(data)):
        with pytest.raises(PackError):
            list(unpacking.unpacked(io.BytesIO(data[:length])))


def test_what_follows_the_end_is_found(archive):
    with pytest.raises(PackError, match="damaged"):
        list(unpacking.unpacked(io.BytesIO(archive.read_bytes() + b"\0")))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "begins with b''"),
        (b"\x89PRU", "pruneonce pack"),
        (b"PK\x03\x04 a zip file", "pruneonce pack"),
        (b"\x89PRUNED\x02", "version 1, found version 2"),
        (b"\x89PRUNED\x01", "cut short"),
        (b"\x89PRUNED\x01\x03\x01\x01\0\0\0", "kind 3"),
        (b"\x89PRUNED\x01\x01\x01\xff\xff\xff\xff\xff\xff\xff\xff", "cut short"),
    ],
)
def test_a_foreign_file_is_one_error_and_nothing_is_written(tmp_path, content, says):
    (tmp_path / "in").write_bytes(content)
    with pytest.raises(PackError, match=re.escape(says)):
        unpacking.unpack(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_damaged_file_leaves_what_was_there(archive, tmp_path):
    (tmp_path / "out").write_text("of yesterday")
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(PackError, match="Get it again"):
        unpacking.unpack(archive, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "of yesterday"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("content", [b"", b"hello, world\n", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(64), b"\x3a\xff"])
def test_what_is_no_onnx_file_is_not_packed(tmp_path, content):
    (tmp_path / "in").write_bytes(content)
    with pytest.raises(PackError, match="expected an ONNX file"):
        packing.pack(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_onnx_file_cut_short_is_not_packed(model, tmp_path):
    model.write_bytes(model.read_bytes()[:-100])
    with pytest.raises(PackError, match="not all of it"):
        packing.pack(model, tmp_path / "out")


def test_weights_in_another_file_are_refused(tmp_path, model):
    onnx.save(onnx.load(model), tmp_path / "split.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(PackError, match="weight in another one"):
        packing.pack(tmp_path / "split.onnx", tmp_path / "out")


def test_a_folder_to_write_in_that_is_not_there(tmp_path, model):
    with pytest.raises(PackError, match="expected to write"):
        packing.pack(model, tmp_path / "no folder" / "out")
