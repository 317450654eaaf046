"""where a model came from: its stages, scores, runs and sources; or what was made of it"""

import argparse
import json
import reprlib
from collections.abc import Iterable

EPILOG = """\
X is one of:
    a file               an exported model, also packed, here or copied elsewhere; any out that DVC tracks
    models:/NAME/3       a registered version; models:/NAME@champion by its alias
    an md5               of an out, or its first digits, 6 at least
    an MLflow run        of a stage or of a flow, or the first digits of its id
    a git commit         the int8 models of its dvc.lock; COMMIT:PATH one of its outs
"""

EXAMPLES = (
    "pruneonce trace ~/downloads/int8.packed     # a copy, by its bytes",
    "pruneonce trace models:/pruneonce-r8@champion",
    "pruneonce trace --forward data/raw/r8       # what was made from it",
)


def options(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("x", metavar="X", type=subject, help="what to trace; see below")
    parser.add_argument("--forward", action="store_true", help="what was made from it, in place of where it came from")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--full", action="store_true", help="every run, md5 and parameter")
    form.add_argument("--json", action="store_true", help="all of it, for a program")
    form.add_argument("--mermaid", action="store_true", help="as a graph for a page")


def lines(args: argparse.Namespace) -> Iterable[str]:
    """All of them, or an error."""
    from pipeline.lineage import trace

    if args.json:
        return [json.dumps((trace.made_from if args.forward else trace.document)(args.x), indent=2)]
    if args.forward:
        return list(trace.forward_mermaid(args.x) if args.mermaid else trace.forward(args.x, full=args.full))
    return list((trace.full if args.full else trace.mermaid if args.mermaid else trace.short)(args.x))


def subject(text: str) -> str:
    if not text or "\0" in text:  # Path("") would be this folder
        raise argparse.ArgumentTypeError(f"expected the name of a file, found {reprlib.repr(text)}")
    return text
