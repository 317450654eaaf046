"""write a model with the operators of the sparse kernels"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from pruneonce.commands import inspect
from pruneonce.commands.pack import sizes
from pruneonce.errors import PackError

EXAMPLES = (
    "pruneonce accelerate data/export/r8/int8.onnx accelerated.onnx",
    "pruneonce accelerate r8.packed accelerated.onnx --execution sparse --threads 4",
)


def options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = inspect.EXECUTION.rpartition("    stock")[0]
    inspect.how(parser, ("auto", "sparse"))
    parser.add_argument("out", type=Path, help="the ONNX file to write")


def lines(args: argparse.Namespace) -> Iterable[str]:
    """Write a file for programs that register the library themselves. Raises PackError if no matrix runs by the kernels."""
    from pruneonce.deployment import execution, safe_files, unpacking  # import numpy, onnx, onnxruntime

    made = execution.accelerated(unpacking.model(args.file), execution=args.execution, threads=args.threads)
    if made is None:
        raise PackError(
            f"expected int8 matrices for the sparse kernels in {args.file}, found none for which they were chosen. See why: "
            f"`pruneonce inspect {args.file} --execution {args.execution} --threads {args.threads}`."
        )
    with safe_files.open_file(args.file) as source:
        safe_files.write_whole(args.out, [made], source)
    return [f"{sizes(args.file, args.out)}; it needs the library {execution.LIBRARY}"]
