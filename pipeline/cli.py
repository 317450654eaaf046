"""The commands of `pruneonce` in a project's folder: plan, trace, register."""

import argparse
import math
import re
import reprlib
from collections.abc import Iterable
from pathlib import Path

from pipeline.tracking import trace
from pruneonce.terminal import flushed_output, one_line_errors


def main() -> None:
    """The command line. Every error a user can meet ends in one line and exit code 1."""
    with flushed_output(), one_line_errors():
        for line in _lines(_parser().parse_args()):
            print(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pruneonce", description="Compressed models: what they cost, and where they came from."
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
    from pipeline.tracking import registry  # imports MLflow, which takes seconds

    return registry.update()


if __name__ == "__main__":
    main()
