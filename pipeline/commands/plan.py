"""check a profile and print what it would cost, without training"""

import argparse
import json
import math
import re
import reprlib
from collections.abc import Iterable

EXAMPLES = (
    "pruneonce plan                                      # params.yaml as it stands",
    "pruneonce plan bert-base-90 --gpus 8 --tflops 100",
    "pruneonce plan tiny --json                          # for a program: docs/commands.md describes it",
)
MOST_GPUS, LEAST_SPEED, MOST_SPEED = 1_000_000, 1e-6, 1e12


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "profile", nargs="?", help="a file of profiles/ without its suffix; default: params.yaml as it stands"
    )
    parser.add_argument("--gpus", type=_count, default=1, help="that share the work (1)")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--tflops", type=_speed, help="model TFLOP/s that one GPU sustains")
    speed.add_argument("--tokens-per-second", type=_speed, help="of training, on one GPU")
    parser.add_argument("--json", action="store_true", help="print JSON, in numbers without a unit")


def lines(args: argparse.Namespace) -> Iterable[str]:
    from pipeline.params import profiles
    from pipeline.plan import inventory

    _, _, p = profiles.stated(args.profile)  # the usual errors come first: torch, below, takes seconds to import
    inventory.source(p.common.model, p).facts()
    from pipeline.plan import costs, page, planned

    found = planned.plan(args.profile, costs.Rate(args.gpus, args.tflops, args.tokens_per_second))
    if args.json:
        return [json.dumps({**planned.as_json(found), "warnings": page.warnings(found)}, indent=2)]
    return list(page.page(found))  # all of it, or an error


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
