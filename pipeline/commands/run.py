"""run every stage that something changed for"""

import argparse
import os
import sys
from collections.abc import Iterable

EXAMPLES = (
    "pruneonce run                                # params.yaml as it stands",
    "pruneonce run --set sparsify.sparsity=0.9",
)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", help="a file of profiles/ without its suffix; default: params.yaml as it stands")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="change one parameter")


def lines(args: argparse.Namespace) -> Iterable[str]:
    """Become the flow, after what it reads is as the installed version writes it."""
    from pipeline.projects import wiring

    if (said := wiring.refresh()) is not None:
        print(said, flush=True)
    words = [*(["--profile", args.profile] if args.profile else []), *(f"--set={change}" for change in args.set)]
    os.execv(sys.executable, [sys.executable, "-m", "flows.compress", *words])
