"""look for what is wrong or missing on this machine, and in a project's folder, and say what to do

Outside of a project it looks at what a model needs: packages, processor, kernels, memory. In a project's folder also at the
locks, the git repository, DVC, MLflow, Prefect, the disk. It changes nothing. The exit code is 1 if there is a problem.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pruneonce.doctor.findings import Check

EXAMPLES = (
    "pruneonce doctor",
    "pruneonce doctor --json     # for a program: docs/commands.md describes it",
)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def lines(args: argparse.Namespace) -> Iterable[str]:
    yield from report(checks(), args, project=False)


def checks() -> list["Check"]:
    """Those of any machine. Imported here: other commands start without them."""
    from pruneonce.doctor import kernels, machine, packages

    return [
        packages.python,
        packages.base,
        packages.project,
        machine.processor,
        machine.cores,
        machine.memory,
        kernels.library,
        kernels.compiler,
    ]


def report(checks: Sequence["Check"], args: argparse.Namespace, *, project: bool) -> Iterator[str]:
    """What the checks find. Ends with exit code 1 if there is a problem."""
    from pruneonce.doctor import findings

    found = findings.run(checks)
    if args.json:
        yield json.dumps(findings.as_json(found, project=project), indent=2)
    else:
        yield from findings.lines(found)
    if not findings.healthy(found):
        raise SystemExit(1)
