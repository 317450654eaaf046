"""print the layers of a model: zeros, pattern, bits, bytes, and by which kernel each one runs here"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

EXAMPLES = (
    "pruneonce inspect data/export/r8/int8.packed",
    "pruneonce inspect data/export/r8/int8.onnx --execution sparse --threads 2",
    "pruneonce inspect r8.packed --json",
)
COLUMNS = """\
columns:
    size      outputs x inputs
    zeros     share of the weights that are zero
    pattern   where the zeros lie, as found from them: unstructured, 1x4, 4x1, 2:4, 4:8; dense: no zeros but by rounding
    bits      of a weight
    bytes     of the weights
    words     share of the words that the sparse kernel stores; a word is four neighbouring inputs of one output
    kernel    sparse, or stock: ONNX Runtime's own
    why       the costs of one token in cycles of all threads, or another reason

"""
DIGITS = 3  # of a number of threads
EXECUTION = """\
execution:
    auto      the faster kernel for each matrix, by costs that were measured on some kinds of processor
    sparse    the sparse kernel for every matrix
    stock     ONNX Runtime's own kernel for every matrix
"""


def options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = COLUMNS + EXECUTION
    how(parser, ("auto", "stock", "sparse"))
    parser.add_argument("--json", action="store_true", help="the same for a program: docs/commands.md describes it")


def how(parser: argparse.ArgumentParser, executions: Sequence[str]) -> None:
    """The options of a command that chooses kernels. executions: which it admits."""
    parser.add_argument("file", type=Path, help="an ONNX file, or a packed one")
    parser.add_argument("--execution", choices=executions, default="auto", help="default: %(default)s")
    parser.add_argument("--threads", type=_threads, default=0, help="of the session; default: one for each core")


def _threads(text: str) -> int:
    if not text.isdecimal() or len(text) > DIGITS:  # ONNX Runtime starts them at once
        raise argparse.ArgumentTypeError(
            f"expected a number of threads of at most {DIGITS} digits, or 0 for one a core, found {text!r}"
        )
    return int(text)


def lines(args: argparse.Namespace) -> Iterable[str]:
    from pruneonce.deployment import overview, unpacking  # import numpy, onnx, onnxruntime

    found = overview.of(unpacking.model(args.file), args.file, execution=args.execution, threads=args.threads)
    return [json.dumps(overview.as_json(found), indent=2)] if args.json else overview.lines(found)
