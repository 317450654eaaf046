"""YAML of anybody: what is no file of parameters is one clear error, in a moment, and nothing of it is built."""

import time
from datetime import date

import pytest
from ruamel.yaml import YAML

from pipeline.params import bounds
from pipeline.params.document import override
from pipeline.params.reading import parse_yaml, read_yaml
from pruneonce.errors import ConfigError


def bomb(depth: int, width: int) -> str:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth))]
    return "\n".join(lines)


HOSTILE = {
    "aliases of aliases": (bomb(9, 9), "at most 50,000 values in here, found more, with its aliases"),
    "doubled often": (bomb(30, 2), "at most 50,000 values"),
    "an alias inside itself": ("a: &a [*a]", r"values that end in here, found \*a in line 1 inside of &a"),
    "an alias of nothing": ("a: *b", "found: ComposerError: found undefined alias.* in here, line 1, column 4"),
    "deep lists": ("[" * 5000, "at most 40 levels in here, found more in line 1"),
    "deep sections": ("{a: " * 5000, "at most 40 levels"),
    "deep blocks": ("\n".join(" " * n + "a:" for n in range(500)), "at most 40 levels in here, found more in line 41"),
    "a key twice": (
        "tasks:\n  r8:\n    a: 1\n  tweets: {}\n  r8:\n    b: 2\n",
        r"every key once in here, found tasks\.r8 twice, in lines 2 and 5\. Move what stands below line 5 under the key in "
        "line 2",
    ),
    "a section twice": ("fetch: {}\ntasks: {}\nfetch: {a: 1}\n", "found fetch twice, in lines 1 and 3"),
    "a key twice in braces": ("a: {b: 1, b: 2}", r"found a\.b twice, in lines 1 and 1"),
    "a key twice in a list": ("- {b: 1}\n- {b: 1, 'b': 2}", "found b twice, in lines 2 and 2"),
    "a list as a key": ("? [a, b]\n: c", "names as keys in here, found a list, a section or an alias in line 1"),
    "a number as a key": ("a: {1: b}", "names as keys in a of here, found 1. Put it in quotes"),
    "null as a key": ("~: b", "names as keys in all of here, found None"),
    "an object of Python": (
        "!!python/object/apply:os.system [id]",
        "values without a tag in here, found .*os.system in line 1",
    ),
    "a tag that does not fit": ("a: !!int x", "values without a tag in here, found tag:yaml.org,2002:int in line 1"),
    "a date": (
        "report: {title: 2024-01-01}",
        r"number or text at report\.title of here, found a date, 2024-01-01\. Put it in",
    ),
    "a date that is none": ("a: 2024-99-99", "YAML in here, found: ValueError: month must be in 1..12"),
    "5,000 digits": ("a: " + "9" * 5000, "YAML in here, found: ValueError: Exceeds the limit"),
    "5,000 digits of sixteen": ("a: 0x" + "f" * 5000, "number of at most 64 bits at a of here, found one of 20000"),
    "half of a surrogate pair": ("a: \ud800", "YAML in here, found: UnicodeEncodeError"),
    "half of a pair, escaped": ('a: "\\ud800"', "YAML in here, found: ScannerError"),
    "a NUL": ("a: \0", "YAML in here, found: ReaderError"),
    "a tab": ("a:\n\tb: 1", "YAML in here, found: ScannerError"),
    "two documents": ("a: 1\n---\nb: 1", "YAML in here, found: ComposerError: expected a single document"),
    "another version": ("%YAML 9.9\n---\na", "YAML in here, found: ParserError"),
    "too much": ("# " + "x" * bounds.MOST_CHARACTERS, "at most 2,000,000 characters in here, found 2,000,002"),
    "too many": ("[" + "1," * 50_001 + "]", "at most 50,000 values"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("yaml", [None, YAML], ids=["plain", "with comments"])
def test_what_is_no_file_of_parameters_is_one_error_in_a_moment(case, yaml):
    text, message = HOSTILE[case]
    began = time.monotonic()
    with pytest.raises(ConfigError, match=message) as raised:
        parse_yaml(text, "here", yaml and yaml())
    assert time.monotonic() - began < 5, "a bomb takes minutes, and many GB"
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: &x {b: 1}\nc: {<<: *x, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        ("[" * 40 + "]" * 40, None),
        ("a: '2024-01-01'\n'1': 2\nb: 18446744073709551615", {"a": "2024-01-01", "1": 2, "b": 2**64 - 1}),
        ("a: {k: 1}\nb: {k: 2}", {"a": {"k": 1}, "b": {"k": 2}}),
        ("\ufeffa: .inf", {"a": float("inf")}),
        ("", None),
    ],
)
def test_what_is_within_bounds_is_read_as_before(text, value):
    assert parse_yaml(text, "here") == (YAML(typ="safe").load(text) if value is None else value)
    assert not isinstance(value, date)


def test_a_file_that_is_no_utf_8_or_no_file(tmp_path):
    path = tmp_path / "params.yaml"
    for raw, message in (
        (b"a: \xe9", r"UTF-8, found one that cannot be read \('utf-8' codec .*params\.yaml"),
        ("a: 1".encode("utf-16"), "UTF-8, found one"),
    ):
        path.write_bytes(raw)
        with pytest.raises(ConfigError, match=message):
            read_yaml(path)
    for wrong, why in ((".", "Is a directory"), ("x" * 5000, "File name too long"), ("a\0b", "embedded null byte")):
        with pytest.raises(ConfigError, match=rf"expected a file in UTF-8, found one that cannot be read \({why}\): "):
            read_yaml(tmp_path / wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sparsify.sparsity=" + "9" * 5000, "YAML in override .*Exceeds the limit"),
        ("report.title=\ud800", r"YAML in override 'report\.title=\\ud800', found: UnicodeEncodeError"),
        ("report.title=" + "[" * 3000, "at most 40 levels"),
        ("report.title=2024-01-01", r"found a date, 2024-01-01\. Put it in quotes"),
        ("report.title={a: 1, a: 2}", "found a twice"),
        ("\0=1", r"expected one of the keys .*, found '\\x00'"),
        ("=1", "expected one of the keys .*, found ''"),
        ("sparsify..sparsity=1", "expected one of the keys .*, found '' in override"),
        ("x" * 5000 + "=1", "expected one of the keys .* in override 'xxx"),
        ("common.seed.x=1", "expected a section at common.seed, found 1"),
        ("no equals", "expected an override like"),
    ],
)
def test_an_override_that_is_none_is_one_error(change, message):
    document = {"common": {"seed": 1}, "sparsify": {"sparsity": 0.8}, "report": {"title": "a"}}
    with pytest.raises(ConfigError, match=message.replace("in override 'xxx", "")) as raised:
        override(document, change)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 2100


def test_counting_costs_little():
    """A tenth of reading, or less; asked loosely, for clocks."""
    text = "\n".join(f"a{n}: {{b: [1, 2, 3], c: text}}" for n in range(3000))
    began = time.perf_counter()
    bounds.check(text, "here")
    counted = time.perf_counter()
    YAML(typ="safe").load(text)
    assert counted - began < time.perf_counter() - counted
