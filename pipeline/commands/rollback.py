"""put the alias champion back on the version before"""

import argparse
from collections.abc import Iterable

from pipeline.commands.promote import alias

EXAMPLES = ('pruneonce rollback r8 --why "wrong labels"',)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", help="a task whose model is registered")
    parser.add_argument("--alias", type=alias, default="champion", help="default: %(default)s")
    parser.add_argument("--why", default="", help="for the history")


def lines(args: argparse.Namespace) -> Iterable[str]:
    from pipeline.tracking import champions  # imports MLflow, which takes seconds

    return [champions.rollback(args.task, args.alias, args.why)]
