"""`python -m tests.faults [suite ...]`: every suite, or those that are named; a line a case, a table at the end.

Its figures are kept in docs/reliability.json. Exit code 1 if anything was lost.
"""

import argparse
import datetime
import importlib
import json
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict

from pipeline import machine
from tests.faults import figures
from tests.faults.case import Case
from tests.faults.ground import Ground

SUITES = tuple(figures.TITLES)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("suite", nargs="*", help=f"of {', '.join(SUITES)}; default: all")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and the order (1)")
    parser.add_argument("--kills", type=int, default=30, help="of each stage that trains (30)")
    args = parser.parse_args()
    if unknown := set(args.suite) - set(SUITES):
        parser.error(f"expected suites of {', '.join(SUITES)}, found {', '.join(sorted(unknown))}")
    lost, found = 0, figures.read()
    with Ground(args.seed, args.kills) as ground:
        for name in args.suite or SUITES:
            began, cases = time.monotonic(), []
            for case in _cases(name, ground):
                print(case.line(), flush=True)
                cases.append({key: value for key, value in asdict(case).items() if key != "suite"})
                lost += bool(case.lost)
                date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
                where = f"{machine.processor()}, {machine.cores()} cores"
                found = figures.merged(figures.read(), name, cases, date=date, machine=where)
                figures.FILE.write_text(json.dumps(found, indent=1) + "\n")  # after each one: a suite may take hours
            print(f"{name}: {len(cases)} cases in {time.monotonic() - began:.0f} s, seed {args.seed}", flush=True)
    print("", *figures.table(found), sep="\n")
    sys.exit(lost > 0)


def _cases(name: str, ground: Ground) -> Iterator[Case]:
    """The cases of a suite; one that breaks is a loss too, and the next suite runs."""
    try:
        yield from importlib.import_module(f"tests.faults.{name}").suite(ground)
    except Exception as error:
        traceback.print_exc()
        yield Case(name, "the suite itself", (f"it broke: {type(error).__name__}: {error}",))


if __name__ == "__main__":
    main()
