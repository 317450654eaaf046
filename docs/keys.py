"""Print every key of params.yaml: type, bounds, and the comment beside its field in the pydantic classes."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from pipeline.params.document import TASK_STAGES, Params
from pipeline.params.section import Section

FIELD = re.compile(r"^    (\w+): .*?(?:  # (.*))?$")
COMMENT = re.compile(r"^    # (.*)$")
BOUNDS = {"minimum": ">= {}", "exclusiveMinimum": "> {}", "maximum": "<= {}", "exclusiveMaximum": "< {}"}
PLAIN = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}

Schema = Mapping[str, Any]


def meanings(section: type[BaseModel]) -> dict[str, str]:
    """Field -> its comment: the lines above it and the one beside it, inherited fields included."""
    found: dict[str, str] = {}
    for base in reversed([each for each in section.__mro__ if issubclass(each, BaseModel) and each is not BaseModel]):
        above: list[str] = []
        for line in inspect.getsource(base).splitlines():
            if comment := COMMENT.match(line):
                above.append(comment[1])
                continue
            if (field := FIELD.match(line)) and (above or field[2]):
                found[field[1]] = " ".join([*above, field[2] or ""]).strip()
            above = []
    return found


def classes(base: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Every class below a class, by name."""
    found: dict[str, type[BaseModel]] = {}
    for each in base.__subclasses__():
        found |= {each.__name__: each, **classes(each)}
    return found


def kind(schema: Schema) -> str:
    """The type and bounds of a value, in words."""
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(dict.fromkeys(kind(each) for each in schema.get("anyOf", schema.get("oneOf"))))
    if "$ref" in schema:
        return "keys below"
    if schema.get("type") == "array":
        least, most = schema.get("minItems"), schema.get("maxItems")
        length = f", {'exactly' if least == most else 'at least'} {least}" if least else ""
        return f"list{length}: {kind(schema['items'])}" if schema["items"] else "list"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties", {})
        (values,) = [*schema.get("patternProperties", {}).values()] or [values]
        return f"mapping of names: {kind(values)}" if isinstance(values, Mapping) and values else "mapping of names"
    limits = [text.format(f"{schema[bound]:,}") for bound, text in BOUNDS.items() if bound in schema]
    if schema.get("pattern", "").startswith("^[A-Za-z0-9][A-Za-z0-9_-]"):
        return "name"
    if "pattern" in schema:
        limits.append(f"`{schema['pattern']}`")
    if "minLength" in schema:
        limits.append("not empty")
    return ", ".join([PLAIN[schema["type"]], *limits])


def parts(schema: Schema, key: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Where a value holds keys of its own: the path to them, and their class."""
    if "$ref" in schema:
        yield key, classes(Section)[schema["$ref"].rpartition("/")[2]]
    for each in schema.get("anyOf", schema.get("oneOf", [])):
        yield from parts(each, key)
    if isinstance(schema.get("items"), Mapping):
        yield from parts(schema["items"], f"{key}[]")
    for values in [schema.get("additionalProperties"), *schema.get("patternProperties", {}).values()]:
        if isinstance(values, Mapping):
            yield from parts(values, f"{key}.<name>")


def rows(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    """(key, type and bounds, meaning) of a section's keys; the keys of a nested class follow the key that holds it."""
    meaning = meanings(section)
    for name, field in section.model_json_schema()["properties"].items():
        key = f"{prefix}{name}"
        yield key, kind(field), meaning.get(name, "")
        for path, inner in parts(field, key):
            yield from rows(inner, f"{path}.")


def lines() -> Iterator[str]:
    """A heading and a table for each section, in the order of the file."""
    meaning = meanings(Params)
    for name, field in Params.model_json_schema()["properties"].items():
        yield from (f"## {name}", "")
        recipe = TASK_STAGES.get(name)
        if recipe:
            yield from (f"The recipe of all tasks. `tasks.<name>.{name}` changes keys of it for one task.", "")
        if name in meaning:
            yield from (meaning[name], "")
        sections = [("", recipe)] if recipe else [(path.lstrip("."), section) for path, section in parts(field, "")]
        if not sections:
            yield from (f"Type: {kind(field)}.", "")
        for path, section in sections:
            if len(sections) > 1:
                yield from (inspect.cleandoc(section.__doc__ or "").partition("\n")[0], "")
            yield from table(rows(section, f"{path}." if path else ""))
            yield ""


def table(cells: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Rows as Markdown."""
    yield from ("| key | type and bounds | meaning |", "|---|---|---|")
    for key, of_type, meaning in cells:
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in (f"`{key}`", of_type, meaning)) + " |"


if __name__ == "__main__":
    print(*lines(), sep="\n")
