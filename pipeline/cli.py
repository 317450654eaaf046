"""The commands of `pruneonce` in a project's folder: which there are. Each one is a file of commands/."""

import argparse
from types import ModuleType

from pipeline.commands import plan, promote, register, rollback, trace
from pruneonce.terminal import flushed_output, one_line_errors

COMMANDS: tuple[ModuleType, ...] = (plan, trace, register, promote, rollback)  # in the order of the help


def main() -> None:
    """The command line. Every error a user can meet ends in one line and exit code 1."""
    with flushed_output(), one_line_errors():
        args = _parser().parse_args()
        for line in args.lines(args):
            print(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pruneonce", description="Compressed models: what they cost, and where they came from."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for module in COMMANDS:
        purpose = (module.__doc__ or "").partition("\n")[0]
        command = commands.add_parser(module.__name__.rpartition(".")[2].replace("_", "-"), help=purpose)
        module.options(command)
        command.set_defaults(lines=module.lines)
    return parser


if __name__ == "__main__":
    main()
