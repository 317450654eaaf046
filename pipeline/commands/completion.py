"""print the completion of all commands for bash, zsh or fish

It has the commands of this project with their options, and the library's.
Profiles, stages and tasks are those of the folder in which you press TAB.
"""

import argparse
from collections.abc import Iterable

from pruneonce.commands import completion

EXAMPLES, options = completion.EXAMPLES, completion.options


def lines(args: argparse.Namespace) -> Iterable[str]:
    from pruneonce.command import COMMANDS, commandline

    own = [commandline.name_of(module) for module in args.modules]
    others = [module for module in COMMANDS if commandline.name_of(module) not in own]
    return [completion.script(args.shell, [*others, *args.modules], {})]
