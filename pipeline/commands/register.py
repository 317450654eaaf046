"""register the int8 models of dvc.lock in MLflow; close runs of lost processes"""

import argparse
from collections.abc import Iterable

EXAMPLES = ("pruneonce register     # after a plain `dvc repro`; a run does it by itself",)


def options(parser: argparse.ArgumentParser) -> None:
    pass


def lines(args: argparse.Namespace) -> Iterable[str]:
    from pipeline.tracking import registry  # imports MLflow, which takes seconds

    return registry.update()
