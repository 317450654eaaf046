"""Limits of a YAML file, checked before it is read: its size, its depth, every key once; names, numbers and text only.

A few lines of aliases can stand for billions of values. A few thousand brackets end the interpreter. If a key stands twice,
one block is lost. So the parser's events are counted first, which builds nothing.
"""

from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, MappingStartEvent, NodeEvent, ScalarEvent

from pruneonce.errors import ConfigError

MOST_CHARACTERS = 2_000_000
MOST_DEPTH = 40
MOST_VALUES = 50_000  # of a person's file, with every alias counted as what it stands for


@dataclass
class _Open:
    """A mapping or a list that has begun. lines: of a mapping's keys; None for a list. key: whose value comes next."""

    anchor: str | None
    lines: dict[str, int] | None
    key: str | None = None
    values: int = 1


@dataclass
class Count:
    """Counts the parser's events. name: the file that they come from. most: values that it may stand for."""

    name: str
    most: int
    inside: list[_Open] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)  # values that an anchor stands for

    def __call__(self, event: Any) -> None:
        """Raises ConfigError at the first event above a limit, or of a kind that a file of parameters has not."""
        if isinstance(event, CollectionEndEvent):
            done = self.inside.pop()
            return self._value(done.values, done.anchor)
        if not isinstance(event, NodeEvent):
            return None
        line = event.start_mark.line + 1
        if tag := getattr(event, "tag", None):
            raise self._bad("values without a tag", f"{tag} in line {line}", "Leave the tag out")
        if self._is_key():
            return self._key(event, line)
        if isinstance(event, AliasEvent):
            return self._value(self._size(event.anchor, line), None)
        if isinstance(event, ScalarEvent):
            return self._value(1, event.anchor)
        if len(self.inside) == MOST_DEPTH:
            raise self._bad(f"at most {MOST_DEPTH} levels", f"more in line {line}", "Leave out what is not a parameter")
        self.inside.append(_Open(event.anchor, {} if isinstance(event, MappingStartEvent) else None))
        return None

    def _is_key(self) -> bool:
        return bool(self.inside) and self.inside[-1].lines is not None and self.inside[-1].key is None

    def _key(self, event: Any, line: int) -> None:
        here = self.inside[-1]
        if not isinstance(event, ScalarEvent):
            raise self._bad("names as keys", f"a list, a section or an alias in line {line}", "Give it a name")
        assert here.lines is not None
        if event.value in here.lines:
            path = ".".join([*(each.key for each in self.inside if each.key), event.value])
            raise self._bad(
                "every key once",
                f"{path} twice, in lines {here.lines[event.value]} and {line}",
                f"Move what stands below line {line} under the key in line {here.lines[event.value]}",
            )
        here.lines[event.value], here.key = line, event.value

    def _size(self, anchor: str, line: int) -> int:
        if any(each.anchor == anchor for each in self.inside):
            raise self._bad("values that end", f"*{anchor} in line {line} inside of &{anchor}", "Write out what is meant")
        return self.sizes.get(anchor, 1)  # the parser raises for an unknown one

    def _value(self, values: int, anchor: str | None) -> None:
        if anchor:
            self.sizes[anchor] = values
        if self.inside:
            self.inside[-1].values += values
            self.inside[-1].key = None
            if self.inside[-1].values > self.most:
                raise self._bad(f"at most {self.most:,} values", "more, with its aliases", "Write out what is meant")

    def _bad(self, expected: str, found: str, do: str) -> ConfigError:
        return ConfigError(f"expected {expected} in {self.name}, found {found}. {do}.")


def check(text: str, name: str, *, generated: bool = False) -> None:
    """Raises ConfigError if `text` is too much to read, or not what a file of parameters is; YAMLError if it is no YAML.

    generated: a program wrote it, such as dvc.lock, which grows with the tasks. It may be of any length, and stand for as
    many values as it has characters.
    """
    if not generated and len(text) > MOST_CHARACTERS:
        raise ConfigError(
            f"expected at most {MOST_CHARACTERS:,} characters in {name}, found {len(text):,}. Is this the file?"
        )
    count = Count(name, max(MOST_VALUES, len(text)) if generated else MOST_VALUES)
    for event in YAML(typ="safe").parse(text):
        count(event)


def check_values(value: Any, name: str, path: tuple[str, ...] = ()) -> None:
    """Raises ConfigError for a key that is no text, a number that no machine has, and a value that YAML makes a date."""
    where = f"{'.'.join(path) or 'all'} of {name}"
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"expected names as keys in {where}, found {key!r}. Put it in quotes.")
            check_values(inner, name, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            check_values(inner, name, (*path, str(number)))
    elif isinstance(value, int) and value.bit_length() > 64:  # Python cannot even print one of 5,000 digits
        raise ConfigError(f"expected a number of at most 64 bits at {where}, found one of {value.bit_length()}.")
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise ConfigError(
            f"expected a number or text at {where}, found a {type(value).__name__}, {value}. Put it in quotes."
        )
