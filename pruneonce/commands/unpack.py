"""write the ONNX file of a packed one, bit for bit"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from pruneonce.commands.pack import sizes

EXAMPLES = (
    "pruneonce unpack r8.packed                # writes r8.onnx",
    "pruneonce unpack r8.packed copy.onnx",
)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="a file that `pruneonce pack` wrote")
    parser.add_argument("out", type=Path, nargs="?", help="the file to write; default: FILE with the ending .onnx")


def lines(args: argparse.Namespace) -> Iterable[str]:
    from pruneonce.deployment import unpacking  # imports numpy, onnx

    target = args.out or args.file.parent / f"{args.file.stem}.onnx"  # with_suffix raises for `.`
    unpacking.unpack(args.file, target)
    return [sizes(args.file, target)]
