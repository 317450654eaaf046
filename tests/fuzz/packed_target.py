"""The process of `coverage_guided` that reads inputs, under atheris. Words: FOLDER FOUND CORPUS, libFuzzer's options.

What Python raises is noted and the process goes on. A crash, a hang or too much memory ends it: libFuzzer keeps that input.
"""

import hashlib
import io
import json
import os
import random
import struct
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["pruneonce", "onnx_ir"]):
        import pruneonce.deployment.accelerate
        import pruneonce.deployment.execution
        import pruneonce.deployment.packing
        import pruneonce.deployment.unpacking

import numpy as np

import pruneonce
from pruneonce.deployment import packing, unpacking
from pruneonce.errors import LONGEST, PruneOnceError
from tests.fuzz import damage

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SEGMENTS = struct.Struct("<BBI")
MOST_BYTES = 1 << 20  # of an input, and of what is damaged inside of one


def read(data: bytes, folder: Path) -> None:
    """Unpack an input on the disk and in memory, load it to answer, and answer. The file that was unpacked is whole."""
    packed, onnx = folder / "model.packed", folder / "model.onnx"
    packed.write_bytes(data)
    onnx.unlink(missing_ok=True)
    try:
        unpacking.unpack(packed, onnx)
    finally:
        left = sorted(path.name for path in folder.iterdir() if path not in (packed, onnx))
        assert not left, f"left over: {left}"
    assert unpacking.read(packed) == onnx.read_bytes()
    how = ("auto", "sparse", "stock")[data[-1] % 3]
    _answer(pruneonce.load(packed, threads=1, execution=how))


def _answer(session: "InferenceSession") -> None:
    ids = np.full((1, 4), 7, np.int64)
    session.run(None, {node.name: ids for node in session.get_inputs()})


def one_input(data: bytes, folder: Path, found: Path) -> None:
    """Read an input; note what is bad, once a kind."""
    try:
        read(data, folder)
    except PruneOnceError as error:
        if "\n" not in str(error) and len(str(error)) <= LONGEST + 100:
            return
        _note(data, f"{type(error).__name__} of several lines, or too long", found)
    except Exception as error:
        from tests.fuzz import case

        _note(data, case._place(error), found)


def _note(data: bytes, what: str, found: Path) -> None:
    path = found / f"{hashlib.md5(what.encode()).hexdigest()[:12]}.packed"
    if not path.exists():
        path.write_bytes(data)
        path.with_suffix(".json").write_text(json.dumps({"what": what}) + "\n")


def mutated(data: bytes, most: int, seed: int, mutate: Any) -> bytes:
    """Another input: a packed file that is damaged, or a whole one of a damaged ONNX file. mutate: the fuzzer's own."""
    draw = random.Random(seed)
    if draw.random() < 0.4:
        return bytes(mutate(data, most))
    try:
        raw = b"".join(unpacking.unpacked(io.BytesIO(data)))
    except (PruneOnceError, MemoryError):
        return bytes(mutate(data, most))
    kind = draw.randrange(4)
    if kind == 0:
        return _cut_anew(raw, draw)[:most]
    if kind == 1:
        raw = damage.data(raw, draw)
    else:  # a window: the fuzzer's own changes go where they please, and most bytes are weights
        at = draw.choice(_starts(raw, draw))
        size = draw.choice((16, 64, 512))
        raw = raw[:at] + bytes(mutate(raw[at : at + size], 2 * size)) + raw[at + size :]
    return _packed(raw, draw)[:most]


def _starts(raw: bytes, draw: random.Random) -> list[int]:
    """Places between the tensors."""
    pieces = list(packing._pieces(io.BytesIO(raw))) if _is_onnx(raw) else [(len(raw), 1)]
    starts, at = [], 0
    for size, width in pieces:
        starts.append(at + (draw.randrange(size) if width == 1 and size else 0))
        at += size
    return starts


def _is_onnx(raw: bytes) -> bool:
    try:
        list(packing._pieces(io.BytesIO(raw)))
    except PruneOnceError:
        return False
    return True


def _packed(raw: bytes, draw: random.Random) -> bytes:
    """A packed file of any bytes, with the right checksum."""
    if _is_onnx(raw):
        return b"".join(packing.packed(io.BytesIO(raw)))
    return _joined([packing.encode(raw, 1)] if raw else [], raw)


def _cut_anew(raw: bytes, draw: random.Random) -> bytes:
    """A valid packed file of the same bytes with other segments; now and then a segment lies about itself."""
    segments, at = [], 0
    while at < len(raw):
        width = draw.choice((1, 1, 2, 4, 8))
        size = min(len(raw) - at, width * draw.choice((1, 3, 100, 5000, 1 << 17)))
        width = width if size % width == 0 else 1
        segments.append(_segment(raw[at : at + size], width, draw))
        at += size
    return _joined(segments, raw)


def _segment(raw: bytes, width: int, draw: random.Random) -> bytes:
    """A segment, dense or sparse, whatever suits; one in ten is not what its head says."""
    elements = np.frombuffer(raw, f"<u{width}")
    mask = elements != 0
    sparse = draw.random() < 0.5
    kept = elements[mask] if sparse else elements
    streams = [plane.tobytes() for plane in kept.view(np.uint8).reshape(-1, width).T]
    streams = [np.packbits(mask).tobytes(), *streams] if sparse else streams
    packed = [zlib.compress(stream, draw.choice((0, 1, 9))) for stream in streams]
    if draw.random() < 0.1:
        packed[draw.randrange(len(packed))] = damage.data(draw.choice(packed), draw)
    size = len(raw) if draw.random() < 0.95 else draw.choice(damage.NUMBERS)
    return SEGMENTS.pack(1 + sparse, width, size) + b"".join(struct.pack("<I", len(part)) + part for part in packed)


def _joined(segments: list[bytes], raw: bytes) -> bytes:
    end = SEGMENTS.pack(packing.END, 0, len(raw)) + hashlib.sha256(raw).digest()
    return packing.MAGIC + bytes([packing.VERSION]) + b"".join(segments) + end


def main() -> None:
    """Read inputs until libFuzzer ends this process."""
    folder, found, *options = sys.argv[1:]
    work = Path(folder, f"work-{os.getpid()}")
    work.mkdir()
    os.chdir(work)
    atheris.Setup(
        [sys.argv[0], *options, f"-max_len={MOST_BYTES}"],
        lambda data: one_input(data, work, Path(found)),
        custom_mutator=lambda data, most, seed: mutated(data, most, seed, atheris.Mutate),
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
