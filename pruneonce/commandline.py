"""What the library's command line and a project's share: a parser, examples in every --help, the word on a mistyped name."""

import argparse
import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType

from pruneonce.errors import plain
from pruneonce.terminal import flushed_output, one_line_errors

LIBRARY = ("pack", "unpack", "inspect", "accelerate")  # the commands of any folder, in the order of the help
EXIT_CODES = """\
exit codes:
    0    done
    1    an error that you can mend: its line says how
    2    words that the command does not know
    130  stopped by Ctrl-C
    141  the reader of the output left, as `head` does
"""


def build(modules: Iterable[ModuleType], *, description: str, more: str = "") -> argparse.ArgumentParser:
    """A parser with a command for each module.

    A module's docstring begins with the line of the command's help. `options(parser)` adds what the command reads,
    `lines(args)` does it and returns the lines to print. EXAMPLES has one or two lines for a shell.
    more: a further list of commands, for the help.
    """
    modules = list(modules)
    own = {name_of(module): purpose(module) for module in modules}
    parser = argparse.ArgumentParser(
        prog="pruneonce",
        usage="%(prog)s [-h] COMMAND ...",
        description=description,
        epilog="\n".join(
            filter(None, (listed("commands", own), more, EXIT_CODES, "`pruneonce COMMAND --help` shows examples."))
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, prog="pruneonce", help=argparse.SUPPRESS)
    for module in modules:
        text = (module.__doc__ or "").rstrip().replace("\n", ".\n", 1)
        command = commands.add_parser(
            name_of(module),
            help=purpose(module),
            description=text[:1].upper() + text[1:] + "." * ("\n" not in text),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.options(command)
        examples = "".join(f"    {example}\n" for example in getattr(module, "EXAMPLES", ()))
        command.epilog = "\n".join(filter(None, (command.epilog, examples and f"examples:\n{examples}")))
        command.set_defaults(lines=module.lines)
    return parser


def name_of(module: ModuleType) -> str:
    """The command's name: that of its file, with dashes."""
    return module.__name__.rpartition(".")[2].replace("_", "-")


def purpose(module: ModuleType) -> str:
    """The command's line in the help."""
    return (module.__doc__ or "").partition("\n")[0]


def run(parser: argparse.ArgumentParser, words: Sequence[str], known: Iterable[str]) -> None:
    """Do what the words say. Every error a user can meet ends in one line, and in an exit code of EXIT_CODES.

    known: the names of all commands, for the word on a mistyped one.
    """
    with flushed_output(), one_line_errors():
        refuse_unknown(parser, words, known)
        args = parser.parse_args(words)
        for line in args.lines(args):
            print(line)


def refuse_unknown(parser: argparse.ArgumentParser, words: Sequence[str], known: Iterable[str]) -> None:
    """End with exit code 2 if the first word is no command: say which are known, and the closest one."""
    names = list(known)
    if not words or words[0].startswith("-") or words[0] in names:
        return
    close = difflib.get_close_matches(words[0][:80], names, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    parser.error(f"expected a command of {', '.join(names)}; found {plain(words[0])[:80]!r}.{hint}")


def listed(title: str, commands: Mapping[str, str]) -> str:
    """Commands with their purposes as a part of a help. commands: name -> purpose."""
    width = max(map(len, commands))
    return f"{title}:\n" + "".join(f"    {name:{width}}  {purpose}\n" for name, purpose in commands.items())
