"""recompute the checksums behind a model, wherever its files lie, and name what differs"""

import argparse
import json
from collections.abc import Iterable

from pipeline.commands.trace import EPILOG, subject

EXAMPLES = (
    "pruneonce verify data/export/r8/int8.onnx",
    "pruneonce verify models:/pruneonce-r8@champion --full",
)


def options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{EPILOG}\nexit code: 0 if nothing differs, 1 if a checksum does\n"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("x", metavar="X", type=subject, help="what to verify; see below")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--full", action="store_true", help="a line for every checksum")
    form.add_argument("--json", action="store_true", help="all of it, for a program")


def lines(args: argparse.Namespace) -> Iterable[str]:
    from pipeline.lineage import verify

    found = list(verify.links(args.x))
    if args.json:
        yield json.dumps(verify.document(found), indent=2)
    else:
        yield from verify.lines(found, full=args.full)
    verify.check(found)
