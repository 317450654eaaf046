"""Packed files, damaged: unpacked on the disk and in memory."""

import io
from pathlib import Path
from random import Random

from pruneonce.deployment import packing, unpacking
from tests.fuzz import damage
from tests.fuzz.case import Files
from tests.fuzz.targets.onnx_file import WHOLE

OUTS = ("out.onnx", "out.onnx.part")
SECONDS = 10.0
SHARE = 20

PACKED = b"".join(packing.packed(io.BytesIO(WHOLE)))


def make(draw: Random) -> Files:
    return {"model.packed": damage.data(PACKED, draw)}


def run(folder: Path) -> None:
    unpacking.unpack(Path("model.packed"), Path("out.onnx"))
    unpacking.read(Path("model.packed"))
