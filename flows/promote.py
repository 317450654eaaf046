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

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from flows import trouble
from flows.compress import LOCK
from flows.repro import quiet_logs, say_errors_once
from pipeline import processes
from pipeline.commands import promote as command
from pipeline.params.document import load
from pipeline.tracking import committed, lock
from pruneonce.errors import ConfigError, NotPromoted
from pruneonce.terminal import flushed_output


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
    try:
        command.alias(alias)
    except argparse.ArgumentTypeError as error:  # a deployment's parameter: the command has looked at its own
        raise ConfigError(error) from None
    with processes.alone(LOCK, "run in this folder"):
        found = [promotion.judge(name, alias=alias, accept_other_split=accept_other_split) for name in chosen(task)]
        for line in (line for judged in found for line in judged.lines()):
            logger.info(line)
        if not dry_run:
            for judged in found:
                promotion.promote(judged, why)
    outcomes = {judged.outcome(moved=not dry_run): judged.holds for judged in found}
    page = [*(f"- {line}" for line in outcomes), "", *(line for judged in found for line in judged.page())]
    create_markdown_artifact("\n".join(page), key="promotion")
    for line in (line for line, holds in outcomes.items() if holds):
        logger.info(line)
    if not all(outcomes.values()):
        raise NotPromoted(". ".join(line for line, holds in outcomes.items() if not holds))
    return list(outcomes)


def chosen(task: str | None) -> list[str]:
    """The tasks to judge. Raises ConfigError for one that params.yaml does not have."""
    tasks = list(load().tasks)
    if task is not None and task not in tasks:
        raise ConfigError(f"expected one of the tasks {tasks}, found {task!r}.")
    return tasks if task is None else [task]


def main() -> None:
    """The command line of the flow. Every error a user can meet, and every gate that fails, ends in one line and exit 1."""
    parser = argparse.ArgumentParser(
        prog="pruneonce promote", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.options(parser)
    with flushed_output():
        args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with trouble.one_line():
        for task in chosen(args.task):  # before Prefect starts a server, which takes seconds
            committed.check(lock.current(), task)
        say_errors_once()
        processes.guard()
        trouble.check_prefect()
        with flushed_output():
            for line in promote(args.task, args.alias, args.dry_run, args.accept_other_split, args.why):
                print(line)


if __name__ == "__main__":
    main()
