"""say why a stage would run: what changed, from what to what, and how long it took last time"""

import argparse
import json
from collections.abc import Iterable

EXAMPLES = (
    "pruneonce why                # every stage that would run",
    "pruneonce why finetune@r8",
)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "stage", nargs="?", help="a stage such as sparsify or finetune@r8; default: all that would run, in order"
    )
    parser.add_argument("--studies", action="store_true", help="the stages of study/ too")
    parser.add_argument("--json", action="store_true", help="all of it, for a program")


def lines(args: argparse.Namespace) -> Iterable[str]:
    from pipeline.lineage import why

    if args.stage:
        reason = why.of(args.stage)
        found = {} if reason is None else {why.short(args.stage): reason}
    else:
        found = why.reasons(studies=args.studies)
    problem = why.with_costs(found) if found else ""
    if args.json:
        return [json.dumps(why.document(found, problem), indent=2)]
    if not found:
        return [
            f"{args.stage} would not run: it is as in dvc.lock" if args.stage else "nothing would run: all is as in dvc.lock"
        ]
    return list(why.page(found[why.short(args.stage)], problem) if args.stage else why.lines(found, problem))
