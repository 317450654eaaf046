"""make the models of dvc.lock the champions, if every gate holds"""

import argparse
import os
import re
import reprlib
import sys
from collections.abc import Iterable

EXAMPLES = (
    "pruneonce promote r8 --dry-run     # judge, and move nothing",
    "pruneonce promote                  # every task",
)
RESERVED = re.compile(r"(?i)latest|current|v\d+")  # MLflow's own names, and the alias that follows dvc.lock


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", nargs="?", help="default: every task of params.yaml")
    parser.add_argument("--alias", type=alias, default="champion", help="default: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="judge, and move nothing")
    parser.add_argument(
        "--accept-other-split",
        action="store_true",
        help="promote without a paired test where the champion was evaluated on another test split",
    )
    parser.add_argument("--why", default="", help="for the history; default: the gates and the score")


def lines(args: argparse.Namespace) -> Iterable[str]:
    """Replace this process by the flow, which shows the verdicts on Prefect's page too."""
    words = [*([args.task] if args.task else []), "--alias", args.alias, f"--why={args.why}"]
    words += [f"--{name}" for name in ("dry-run", "accept-other-split") if getattr(args, name.replace("-", "_"))]
    os.execv(sys.executable, [sys.executable, "-m", "flows.promote", *words])


def alias(text: str) -> str:
    """A name that MLflow takes for an alias, and that nothing else moves."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", text) or RESERVED.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"expected a name of letters, digits, - and _, but not latest, current or v1, found {reprlib.repr(text)}"
        )
    return text
