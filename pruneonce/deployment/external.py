"""Weights that an ONNX file keeps in other files: they must lie in the file's own folder, as files and not as links.

Anybody can write an ONNX file, and it names those files: `/etc/passwd` would be read as weights. onnx and ONNX Runtime
refuse that as well, each version a little more of it. Found in the protobuf fields, as in `protobuf`, without onnx.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pruneonce.deployment.protobuf import EXTERNAL_DATA, GRAPH, INITIALIZER, KEY, VALUE, _fields, _text
from pruneonce.errors import PackError

# Protobuf numbers of ONNX's fields that lead from one message to a tensor: message -> field -> message.
WAYS = {
    "model": {GRAPH: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", INITIALIZER: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
DEEPEST = 100  # messages inside of each other; protobuf itself reads no more


def check(file: BinaryIO, folder: Path | None, name: object) -> None:
    """Raises PackError if the ONNX file keeps weights outside of `folder`. name: of the file, for the message.

    folder: that the file lies in; None for one that is in memory: it must hold all its weights.
    """
    try:
        named = dict.fromkeys(_locations(file))
    except PackError as error:
        raise PackError(f"{error} The file is {name}. Get the file again.") from None
    for location in named:
        if folder is None:
            raise PackError(
                f"expected all weights in {name}, found some in another file, {location!r}. Save it as one file."
            )
        if fault := _fault(folder, location):
            raise PackError(
                f"expected the weights of {name} in files of its own folder, found {location!r}, {fault}. It was not read. "
                "Get the file again, saved as one file."
            )


def _fault(folder: Path, location: str) -> str:
    """Why a file that a model names is not read; empty if it may be."""
    try:
        place = folder / location
        if os.path.isabs(location) or not place.resolve().is_relative_to(folder.resolve()):
            return "which lies outside of it"
        status = place.lstat()
    except (OSError, ValueError, RuntimeError):  # ValueError: a NUL in the name; RuntimeError: links in a circle
        return "which is not there"
    if stat.S_ISLNK(status.st_mode) or status.st_nlink > 1:
        return "which is a link"
    return "" if stat.S_ISREG(status.st_mode) else "which is no file"


def _locations(file: BinaryIO) -> Iterator[str]:
    """The names of other files in all tensors of an ONNX file. Raises PackError for a file that is not ONNX."""
    return _below(file, "model", 0, file.seek(0, os.SEEK_END), 0)


def _below(file: BinaryIO, message: str, start: int, stop: int, depth: int) -> Iterator[str]:
    if depth > DEEPEST:
        raise PackError(f"expected an ONNX file, found graphs in graphs, more than {DEEPEST} deep.")
    for field, begin, end in _fields(file, start, stop):
        if message == "tensor" and field == EXTERNAL_DATA:
            entry = {field: value for field, *value in _fields(file, begin, end)}
            if _text(file, *entry.get(KEY, (0, 0))) == "location":
                yield _text(file, *entry.get(VALUE, (0, 0)))
        elif message != "tensor" and (inner := WAYS[message].get(field)):
            yield from _below(file, inner, begin, end, depth + 1)
