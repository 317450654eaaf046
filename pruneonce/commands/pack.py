"""store an ONNX file near its entropy, bit for bit"""

import argparse
from collections.abc import Iterable
from pathlib import Path

EXAMPLES = (
    "pruneonce pack data/export/r8/int8.onnx            # writes data/export/r8/int8.packed",
    "pruneonce pack data/export/r8/int8.onnx r8.packed",
)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="an ONNX file")
    parser.add_argument("out", type=Path, nargs="?", help="the file to write; default: FILE with the ending .packed")


def lines(args: argparse.Namespace) -> Iterable[str]:
    from pruneonce.deployment import packing  # imports numpy, onnx

    target = args.out or args.file.parent / f"{args.file.stem}.packed"  # with_suffix raises for `.`
    packing.pack(args.file, target)
    return [sizes(args.file, target)]


def sizes(source: Path, target: Path) -> str:
    """Both files with their bytes."""
    return f"{source}  {source.stat().st_size} bytes -> {target}  {target.stat().st_size} bytes"
