"""The commands of `pruneonce` in a project's folder: which there are. Each one is a file of commands/."""

import argparse
import signal
import sys
from types import ModuleType

from pipeline.commands import (
    add_task,
    completion,
    doctor,
    init,
    plan,
    predict,
    promote,
    register,
    rollback,
    run,
    trace,
    verify,
    why,
)
from pruneonce import commandline

COMMANDS: tuple[ModuleType, ...] = (  # in the order of the help
    init,
    add_task,
    plan,
    run,
    trace,
    verify,
    why,
    register,
    promote,
    rollback,
    predict,
    doctor,
    completion,
)


def main() -> None:
    """The command line of the project alone: `pruneonce` starts it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `init` and others clean up
    commandline.run(_parser(), sys.argv[1:], [*map(commandline.name_of, COMMANDS), *commandline.LIBRARY])


def _parser() -> argparse.ArgumentParser:
    return commandline.build(COMMANDS, description="Compressed models: what they cost, and where they came from.")


if __name__ == "__main__":
    main()
