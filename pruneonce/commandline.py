"""What the library's command line and a project's share: a parser, examples in every --help, the word on a mistyped name."""

import argparse
import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType

from pruneonce.errors import plain
from pruneonce.terminal import flushed_output, one_line_errors

# The commands of any folder, in the order of the help.
LIBRARY = ("predict", "pack", "unpack", "inspect", "accelerate", "doctor", "completion")
EXIT_CODES = """\
exit codes:
    0    done
    1    an error that you can mend: its line says how
    2    words that the command does not know
    130  stopped by Ctrl-C
    141  the reader of the output left, as `head` does
"""
LAST = "`pruneonce COMMAND --help` shows examples."


def build(
    modules: Sequence[ModuleType], *, description: str, further: Mapping[str, str] | None = None, title: str = ""
) -> argparse.ArgumentParser:
    """A parser with a command for each module.

    A module's docstring begins with the line of the command's help. `options(parser)` adds what the command reads,
    `lines(args)` does it and returns the lines to print; args.modules and args.further are those of this function.
    EXAMPLES has some lines for a shell.

    further, title: name -> purpose of the commands that another program has, for the help, and the words above them.
    """
    own = {name_of(module): purpose(module) for module in modules}
    more = _listed(title, further) if further and title else ""
    parser = argparse.ArgumentParser(
        prog="pruneonce",
        usage="%(prog)s [-h] COMMAND ...",
        description=description,
        epilog="\n".join(filter(None, (_listed("commands", own), more, EXIT_CODES, LAST))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, prog="pruneonce", help=argparse.SUPPRESS)
    for module in modules:
        command = commands.add_parser(
            name_of(module),
            help=purpose(module),
            description=_sentences(module),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.options(command)
        examples = "".join(f"    {example}\n" for example in getattr(module, "EXAMPLES", ()))
        command.epilog = "\n".join(filter(None, (command.epilog, examples and f"examples:\n{examples}")))
        command.set_defaults(lines=module.lines, modules=modules, further=further or {})
    return parser


def _listed(title: str, commands: Mapping[str, str]) -> str:
    """Commands with their purposes as a part of a help. commands: name -> purpose."""
    width = max(map(len, commands))
    return f"{title}:\n" + "".join(f"    {name:{width}}  {line}\n" for name, line in commands.items())


def _sentences(module: ModuleType) -> str:
    """The docstring of a command as the text of its help."""
    first, _, rest = (module.__doc__ or "").partition("\n")
    return f"{first[:1].upper()}{first[1:]}.\n{rest}".rstrip()


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
    names = list(dict.fromkeys(known))
    if not words or words[0].startswith("-") or words[0] in names:
        return
    close = difflib.get_close_matches(words[0][:80], names, n=1)
    close = ["--help"] if words[0] == "help" else close
    hint = f" Did you mean {close[0]}?" if close else ""
    parser.error(f"expected a command of {', '.join(names)}; found {plain(words[0])[:80]!r}.{hint}")
