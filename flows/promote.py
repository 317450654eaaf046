"""Move the alias `champion` to the models of dvc.lock: only where every gate of params.yaml holds.

`python -m flows.promote` judges every task, `python -m flows.promote r8` one. `pruneonce promote` is the same command. The
tree of git must be clean, dvc.lock included. A champion that is there is compared on the same test rows. Nothing is trained.
"""

if __name__ == "__main__":  # before what takes seconds to import
    from flows import stopping

    stopping.listen()

import argparse
import signal
import sys

import httpx
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from rich.console import Console
from rich.markdown import Markdown

from flows import trouble
from flows.compress import LOCK
from flows.repro import quiet_logs, say_errors_once
from pipeline import processes
from pipeline.commands import promote as command
from pipeline.params.document import load
from pruneonce.errors import NotPromoted, PruneOnceError
from pruneonce.terminal import flushed_output

WIDTH = 120  # of a page that is no terminal


@flow(name="promote", validate_parameters=True, persist_result=False, log_prints=False)
def promote(
    task: str | None = None,
    alias: str = "champion",
    dry_run: bool = False,
    accept_other_split: bool = False,
    why: str = "",
) -> list[str]:
    """Judge the model of a task, or of every task, and move the alias where every gate holds.

    accept_other_split: where the champion was evaluated on another test split, move without a paired test.
    Returns a line for each task. Raises NotPromoted if a gate does not hold; the other tasks are promoted.
    """
    from pipeline.tracking import promotion  # imports MLflow, which takes seconds

    quiet_logs()
    logger = get_run_logger()
    with processes.alone(LOCK, "run in this folder"):
        tasks = [task] if task is not None else list(load().tasks)
        found = [promotion.judge(name, alias=alias, accept_other_split=accept_other_split) for name in tasks]
        page = "\n".join(line for judged in found for line in [*judged.page(), ""])
        create_markdown_artifact(page, key="promotion")
        show(page)
        for judged in found:
            if not dry_run:
                promotion.promote(judged, why)
    outcomes = [judged.outcome(moved=not dry_run) for judged in found]
    for judged, line in zip(found, outcomes, strict=True):
        if judged.holds:
            logger.info(line)
    if broken := [line for judged, line in zip(found, outcomes, strict=True) if not judged.holds]:
        raise NotPromoted(". ".join(broken))
    return outcomes


def show(page: str) -> None:
    """Print the verdicts."""
    Console(width=None if sys.stdout.isatty() else WIDTH).print(Markdown(page))


def main() -> None:
    """The command line of the flow. Every error a user can meet, and every gate that fails, ends in one line and exit 1."""
    parser = argparse.ArgumentParser(
        prog="pruneonce promote", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.options(parser)
    with flushed_output():
        args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        load()  # before Prefect starts a server, which takes seconds
        say_errors_once()
        processes.guard()
        trouble.check_prefect()
        with flushed_output():
            for line in promote(args.task, args.alias, args.dry_run, args.accept_other_split, args.why):
                print(line)
    except PruneOnceError as error:
        sys.exit(f"\n{type(error).__name__}: {error}")
    except (httpx.HTTPError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not trouble.no_server(error):
            raise
        sys.exit(f"\nPipelineError: {trouble.unreachable(error)}")


if __name__ == "__main__":
    main()
