"""print the completion of all commands for bash, zsh or fish

In a project's folder it has the options of the project's commands too. Elsewhere it has their names alone.
Profiles, stages and tasks are those of the folder in which you press TAB.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from pruneonce import commandline

SHELLS = ("bash", "zsh", "fish")
EXAMPLES = (
    'eval "$(pruneonce completion bash)"          # for this shell; in ~/.bashrc for every one',
    "pruneonce completion zsh > ~/.zfunc/_pruneonce",
    "pruneonce completion fish > ~/.config/fish/completions/pruneonce.fish",
)
# What an argument of this name is completed with: a shell command that prints the words.
WORDS = {
    "profile": "ls profiles 2>/dev/null | sed -n 's/[.]yaml$//p'",
    "stage": "sed -n 's/^  \\([^ ]*\\):$/\\1/p' dvc.lock 2>/dev/null",
    "task": "sed -n '/^tasks:/,/^[^ #]/s/^  \\([^ #]*\\):.*/\\1/p' params.yaml 2>/dev/null",
}


# The words that bash is given: it would run a `$(...)` in one of them, and a folder's files may be anybody's.
PLAIN = "[A-Za-z0-9@_.-]*"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS)


def lines(args: argparse.Namespace) -> Iterable[str]:
    return [script(args.shell, args.modules, args.further)]


def script(shell: str, modules: Sequence[ModuleType], further: Mapping[str, str]) -> str:
    """What a shell reads. modules: of commands. further: names of other commands with their purposes."""
    import shtab

    named: list[Any] = [
        SimpleNamespace(__name__=name, __doc__=line, options=_nothing, lines=None) for name, line in further.items()
    ]
    parser = commandline.build([*modules, *named], description="")
    _complete(parser, shtab)
    functions: Any = {shell: _functions(shell)}  # annotated as a text, documented as this
    return shtab.complete(parser, shell=shell, preamble=functions).rstrip()


def _nothing(parser: argparse.ArgumentParser) -> None:
    """The options of a command that is known by name only."""


def _complete(parser: argparse.ArgumentParser, shtab: ModuleType) -> None:
    """Say for every argument with what it is completed, in the attribute that shtab reads."""
    for action in parser._actions:
        kind = action.dest.removesuffix("s")
        if isinstance(action, argparse._SubParsersAction):
            action.help = None  # shtab leaves out what the help does
            for below in action.choices.values():
                _complete(below, shtab)
        elif kind in WORDS:
            action.complete = {**dict.fromkeys(SHELLS, f"_pruneonce_{kind}"), "fish": f"(_pruneonce_{kind})"}  # type: ignore[attr-defined]
        elif action.dest == "folder":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.type is Path or action.dest == "file":
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def _functions(shell: str) -> str:
    """A function of the shell for each of WORDS."""
    # To bash an @ ends a word, and a stage is called finetune@r8.
    first = {"bash": "COMP_WORDBREAKS=${COMP_WORDBREAKS//@/}"}.get(shell, "")
    form = {
        "bash": f"""_pruneonce_{{}}() {{{{ compgen -W "$({{}} | LC_ALL=C grep -x '{PLAIN}')" -- "$1"; }}}}""",
        "zsh": '_pruneonce_{}() {{ compadd -- ${{(f)"$({})"}}; }}',
        "fish": "function _pruneonce_{}; {}; end",
    }[shell]
    return "\n".join([first, *(form.format(kind, words) for kind, words in WORDS.items())])
