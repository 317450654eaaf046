"""Laws of laying one document over another."""

from io import StringIO

from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline.params import overlay

# One shape for all: which names are sections and which are values, as a schema would have it.
VALUES = st.one_of(st.integers(), st.none(), st.lists(st.integers(), max_size=3))


def documents(depth: int = 3):
    leaves = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)
    if depth == 0:
        return leaves
    inner = st.dictionaries(st.sampled_from("XYZ"), documents(depth - 1), max_size=2)
    return st.builds(lambda one, two: {**one, **two}, leaves, inner)


def as_yaml(plain: dict):
    """The document as it is read from a file, a comment on every second line."""
    out, yaml = StringIO(), YAML()
    yaml.dump(plain, out)
    lines = out.getvalue().splitlines()
    text = "\n".join(line + ("  # c" if n % 2 and not line.endswith("-") else "") for n, line in enumerate(lines))
    return yaml.load(text + "\n") if plain else yaml.load("{}")


def lay(*plain: dict) -> dict:
    first, *rest = map(as_yaml, plain)
    for document in rest:
        overlay.lay(first, document)
    out, yaml = StringIO(), YAML()
    yaml.dump(first, out)
    found = YAML(typ="safe").load(out.getvalue())
    assert found == first, "what is written is what was merged, comments or not"
    return found


def oracle(base: dict, over: dict) -> dict:
    both = {k: oracle(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in over.items()}
    return {**base, **both}


@given(documents(), documents())
def test_it_is_the_merge_of_the_plain_documents(base, over):
    assert lay(base, over) == oracle(base, over)


@given(documents())
def test_nothing_on_top_and_itself_on_top_change_nothing(document):
    assert lay(document, {}) == lay({}, document) == lay(document, document) == document


@given(documents(), documents(), documents())
def test_three_are_laid_one_by_one_or_the_upper_two_first(a, b, c):
    assert lay(a, b, c) == lay(a, lay(b, c))


@given(documents(), documents(), st.sampled_from("abc"), st.integers())
def test_the_later_wins(base, over, key, value):
    assert lay(base, {**over, key: value})[key] == value


@given(documents(), st.sampled_from("XYZ"), st.data())
def test_what_is_dropped_is_gone_and_nothing_else(document, section, data):
    document = {**document, section: {"one": 1, **document.get(section, {}), "end": {"a": None}}, "z": 1}
    key = data.draw(st.sampled_from(sorted(document[section])))
    read = as_yaml(document)
    overlay.drop(read, section, key)
    rest = {name: value for name, value in document[section].items() if name != key}
    out, yaml = StringIO(), YAML()
    yaml.dump(read, out)
    assert YAML(typ="safe").load(out.getvalue()) == {**document, section: rest}
