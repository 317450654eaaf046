"""A grid over parameters: every combination of the values is a cell."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.params.reading import parse_yaml
from pruneonce.errors import ConfigError

LONGEST = 80  # characters of a cell's name, which stands in file names


@dataclass(frozen=True)
class Cell:
    """name: its values, fit for a file name. values: key of params.yaml -> text. overrides: the same as `key=value`."""

    name: str
    values: dict[str, str]

    @property
    def overrides(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.values.items()]


def cells(axes: Sequence[str]) -> list[Cell]:
    """axes: ["sparsify.sparsity=0.85,0.9", "common.seed=1,2"]; the last one varies first. Raises ConfigError."""
    parsed = dict(map(_axis, axes))
    if not parsed or len(parsed) < len(axes):
        raise ConfigError(
            "expected one --grid for each of some parameters, such as --grid sparsify.sparsity=0.85,0.9, "
            f"found {list(axes) or 'none'}."
        )
    short = _short(list(parsed))
    combined = [dict(zip(parsed, row, strict=True)) for row in itertools.product(*parsed.values())]
    names = ["_".join(f"{short[key]}={_plain(value)}" for key, value in values.items()) for values in combined]
    unique = len(set(names)) == len(names) and max(map(len, names)) <= LONGEST
    return [
        Cell(name if unique else f"{number:04d}_{name}"[:LONGEST], values)
        for number, (name, values) in enumerate(zip(names, combined, strict=True), 1)
    ]


def _axis(text: str) -> tuple[str, list[str]]:
    key, sign, values = text.partition("=")
    found = _split(values)
    if not sign or not key or not all(found) or len({_meant(value, text) for value in found}) < len(found):
        raise ConfigError(
            f"expected section.key=value,value with values that differ, such as sparsify.sparsity=0.85,0.9, found {text!r}."
        )
    return key, found


def _meant(value: str, text: str) -> str:
    """The value as params.yaml takes it: 0.9 and 0.90 are one."""
    meant = parse_yaml(value, f"the grid {text!r}")
    return repr(float(meant) if isinstance(meant, int) and not isinstance(meant, bool) else meant)


def _split(values: str) -> list[str]:
    """The values between the commas that are in no bracket: `[1,2],[3]` has two."""
    parts, depth = [""], 0
    for letter in values:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _short(keys: list[str]) -> dict[str, str]:
    """The last part of each key where no other key ends like it."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: part if last.count(part) == 1 else key for key, part in zip(keys, last, strict=True)}


def _plain(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", value).strip("-.") or "x"
