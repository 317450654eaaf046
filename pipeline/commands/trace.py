"""print the stages, md5s, parameters and MLflow runs behind a file"""

import argparse
import reprlib
from collections.abc import Iterable
from pathlib import Path

from pipeline.tracking import trace

EXAMPLES = (
    "pruneonce trace data/export/r8/int8.onnx",
    "pruneonce trace ~/downloads/int8.onnx       # a copy, by its bytes",
)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=_path, help="an exported model, here or copied elsewhere, or any DVC-tracked out")


def lines(args: argparse.Namespace) -> Iterable[str]:
    return list(trace.lines(args.file))  # all of it, or an error


def _path(text: str) -> Path:
    if not text or "\0" in text:  # Path("") would be this folder
        raise argparse.ArgumentTypeError(f"expected the name of a file, found {reprlib.repr(text)}")
    return Path(text)
