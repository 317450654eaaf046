"""Questions about a guess, where a person is at the terminal; elsewhere the guess is taken, and said."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.params.metrics import METRICS
from pipeline.projects import tasks
from pipeline.projects.tasks import Chosen
from pruneonce.errors import ConfigError, DataError

Ask = Callable[[str], str]  # a question -> the line that was typed


@dataclass(frozen=True)
class Given:
    """What the command line says of a task; None: to be guessed."""

    path: Path
    name: str | None
    text: str | None
    label: str | None
    pair: str | None
    kind: str | None

    @property
    def complete(self) -> bool:
        return None not in (self.text, self.label)


def at_terminal() -> Ask | None:
    """A way to ask, if somebody is there."""
    return _input if sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty() else None


def _input(question: str) -> str:
    """The line that was typed. Raises ConfigError for Ctrl-D."""
    try:
        return input(question)
    except EOFError:
        print()
        raise ConfigError("expected an answer, found the end of the input. Give --text and --label, or --yes.") from None


def choose(given: Given, ask: Ask | None) -> Iterator[str | Chosen]:
    """Yield lines that say what was guessed, and last the task. Raises ConfigError, DataError."""
    chosen, found = tasks.choose(
        given.path, name=given.name, text=given.text, label=given.label, pair=given.pair, kind=given.kind
    )
    if given.complete and chosen:
        yield chosen
        return
    if not any(name.strip() for name in found.columns):
        raise DataError(
            f"expected the names of the columns in the first line of {given.path}, found none. Write them there."
        )
    shown = ", ".join(f"{c.name} ({c.distinct:,} different)" for c in found.columns.values())
    yield f"{given.path} has columns {shown}"
    if chosen:
        label_said = "" if chosen.label is None else f"label {chosen.label!r}, "
        yield f"Guessed: text {chosen.text!r}, {label_said}kind {chosen.kind}"
        if ask is None or ask("Is that right? [Y/n] ").strip().lower() in ("", "y", "yes"):
            yield chosen
            return
    if ask is None:
        raise tasks.unclear(given.path, found)
    names = list(found.columns)
    text = given.text or _pick("the text", names, found.text, ask)
    label = given.label or _pick("the label", [name for name in names if name != text], found.label, ask)
    kind = given.kind or _pick("the kind of task", list(METRICS), found.columns[label].kind, ask)
    yield Chosen(given.name or tasks.name_of(given.path), given.path, text, label, kind, given.pair)


def _pick(what: str, names: Sequence[str], default: str | None, ask: Ask) -> str:
    """Ask for one of the names, at most three times. An empty line takes the default."""
    default = default if default in names else None
    for _ in range(3):
        typed = ask(f"Which is {what}? {', '.join(names)}{f' [{default}]' if default else ''}: ").strip()
        if typed in names or (not typed and default):
            return typed or str(default)
    raise ConfigError(f"expected {what}, one of {list(names)}, found {typed!r} three times.")
