"""The command `pruneonce`: plan, trace, register, pack, unpack."""

import argparse
import contextlib
import io
import math
import os
import re
import reprlib
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.tracking import trace
from pruneonce.deployment import packing, unpacking
from pruneonce.errors import PruneOnceError, plain


def main() -> None:
    """The command line. Every error a user can meet ends in one line and exit code 1."""
    with said():
        args = _parser().parse_args()
        try:
            for line in _lines(args):
                print(line)
        except PruneOnceError as error:
            sys.exit(f"{type(error).__name__}: {error}")
        except KeyboardInterrupt:
            print("\nStopped by Ctrl-C.", file=sys.stderr)
            sys.exit(130)


@contextlib.contextmanager
def said() -> Iterator[None]:
    """What is printed inside is out at the end. Exit code 141, and no word, if its reader has left before, as `head` does:
    that of SIGPIPE, which would also end this process where a server hangs up. Exit code 1 for a disk that is full, say."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need be no text, and a terminal no UTF-8
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # None: closed by who started us
                sys.stdout.flush()
    except BrokenPipeError:
        _forget()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        _forget()
        sys.exit(plain(f"DataError: expected files that can be read and written, found: {error}"))


def _forget() -> None:
    """What still waits to be printed goes nowhere: Python would try once more, and say that it failed."""
    with contextlib.suppress(OSError, ValueError):  # a stream of a test has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pruneonce", description="Compressed models: what they cost, where they came from, and small files of them."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("plan", help="check a profile and print what it would cost, without training")
    command.add_argument(
        "profile", nargs="?", help="a file of profiles/ without its suffix; default: params.yaml as it stands"
    )
    command.add_argument("--gpus", type=_count, default=1, help="that share the work (1)")
    speed = command.add_mutually_exclusive_group()
    speed.add_argument("--tflops", type=_speed, help="model TFLOP/s that one GPU sustains")
    speed.add_argument("--tokens-per-second", type=_speed, help="of training, on one GPU")
    command = commands.add_parser("trace", help="print the stages, md5s, parameters and MLflow runs behind a file")
    command.add_argument("file", type=_path, help="an exported model, here or copied elsewhere, or any DVC-tracked out")
    commands.add_parser("register", help="register the int8 models of dvc.lock in MLflow; close runs of lost processes")
    for name, result, what in (
        ("pack", ".packed", "store an ONNX file near its entropy"),
        ("unpack", ".onnx", "the ONNX file back"),
    ):
        command = commands.add_parser(name, help=f"{what}, bit for bit")
        command.add_argument("file", type=Path)
        command.add_argument("out", type=Path, nargs="?", help=f"what to write; default: FILE with the ending {result}")
        command.set_defaults(ending=result)
    return parser


MOST_GPUS, LEAST_SPEED, MOST_SPEED = 1_000_000, 1e-6, 1e12


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= MOST_GPUS:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {MOST_GPUS}, found {reprlib.repr(text)}")
    return int(text)


def _speed(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not LEAST_SPEED <= found <= MOST_SPEED:  # nor nan
        raise argparse.ArgumentTypeError(
            f"expected a number from {LEAST_SPEED:g} to {MOST_SPEED:g}, found {reprlib.repr(text)}"
        )
    return found


def _path(text: str) -> Path:
    if not text or "\0" in text:  # Path("") would be this folder
        raise argparse.ArgumentTypeError(f"expected the name of a file, found {reprlib.repr(text)}")
    return Path(text)


def _lines(args: argparse.Namespace) -> Iterable[str]:
    """Do what was asked and say what was done."""
    if args.command == "plan":
        from pipeline.plan import costs, page  # import torch, which takes seconds

        return list(page.lines(args.profile, costs.Rate(args.gpus, args.tflops, args.tokens_per_second)))
    if args.command == "trace":
        return list(trace.lines(args.file))  # all of it, or an error
    if args.command == "register":
        return _register()
    out = args.out or args.file.parent / f"{args.file.stem}{args.ending}"  # with_suffix raises for `.`
    (packing.pack if args.command == "pack" else unpacking.unpack)(args.file, out)
    before, after = args.file.stat().st_size, out.stat().st_size
    return [f"{args.file}  {before} bytes -> {out}  {after} bytes"]


def _register() -> Iterator[str]:
    """A line for each lost run that is closed, and for each model whose current version moved. Raises PruneOnceError."""
    from pipeline.tracking import lock, registry, runs  # import MLflow, which takes seconds

    yield from (f"{name}: its process is gone, so its run is closed as KILLED" for name in runs.close_lost())
    yield from registry.register(lock.current())


if __name__ == "__main__":
    main()
