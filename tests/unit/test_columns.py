"""Which column is the text, which one the label, and of what kind a task is: files as people have them."""

import json
import string

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneonce import columns
from pruneonce.errors import DataError

SAID = ["The room was clean and quiet", "I would never come here again", "Breakfast is served until ten o'clock"]


def table(path, header, *rows):
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in [header, *rows]))
    return path


def many(*kinds, count=60):
    """Rows of so many columns: each kind is a function of the row's number."""
    return [[kind(i) for kind in kinds] for i in range(count)]


def text(i):
    return f"{SAID[i % 3]} {i}"


def longer(i):
    return f"{text(i)} and more"


def when(i):
    return f"2024-01-{i % 28:02} 10:{i:02}"


KIND = "classification"


@pytest.mark.parametrize(
    ("header", "kinds", "expected"),
    [
        (["body", "stars"], [text, lambda i: i % 5 + 1], ("body", "stars", KIND)),
        (["", "review", "sentiment"], [int, text, lambda i: "np"[i % 2]], ("review", "sentiment", KIND)),
        (["id", "q", "who"], [lambda i: 1000 + i, text, lambda i: f"person {i % 3}"], ("q", "who", KIND)),
        (["s", "score"], [text, lambda i: i / 7], ("s", "score", "regression")),
        (["likes", "s", "by"], [lambda i: i * i % 97, text, lambda i: "ab"[i % 2]], ("s", "by", KIND)),
        (["when", "s", "t"], [when, text, lambda i: i % 2], ("s", "t", KIND)),
        (["title", "text", "c"], [longer, text, lambda i: i % 2], ("text", "c", KIND)),
        (["star_rating", "n", "reviewText"], [lambda i: i % 5, lambda i: i % 4, text], ("reviewText", "star_rating", KIND)),
        (["s", "a", "b"], [text, lambda i: "xy"[i % 2], lambda i: "uvw"[i % 3]], ("s", None, None)),
        (["s", "t", "label"], [text, text, lambda i: i % 2], (None, "label", KIND)),
        (["s", "only"], [text, lambda i: "one"], ("s", None, None)),
        (["s", "id"], [text, int], ("s", None, None)),
        (["s", "name"], [text, lambda i: f"name{i}"], ("s", None, None)),
    ],
)  # fmt: skip
def test_columns_of_a_csv(tmp_path, header, kinds, expected):
    found = columns.guess(table(tmp_path / "a.csv", header, *many(*kinds)))
    assert (found.text, found.label, found.kind) == expected


def test_lists_are_several_labels(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"topics": ["x", "y"][: i % 3], "t": text(i), "n": i}) + "\n" for i in range(60)))
    found = columns.guess(path)
    assert (found.text, found.label, found.kind) == ("t", "topics", "multi_label")
    rows = {"t": [text(i) for i in range(60)], "tags": [["x", "y"][: i % 3] for i in range(60)]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    found = columns.guess(tmp_path / "a.parquet")
    assert (found.text, found.label, found.kind) == ("t", "tags", "multi_label")


def test_what_is_known_is_not_guessed(tmp_path):
    path = table(tmp_path / "a.csv", ["s", "t", "a", "b"], *many(text, text, lambda i: i % 2, lambda i: i / 3))
    found = columns.guess(path, text="t", label="b")
    assert (found.text, found.label, found.kind) == ("t", "b", "regression")
    assert columns.guess(path, label="s").text == "t"  # a column is not both
    with pytest.raises(DataError, match=r"expected column 'x' in .*, found columns \['s', 't', 'a', 'b'\]"):
        columns.guess(path, text="x")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "s,label\n", "expected rows in .*, found none"),
        ("a.csv", "", "found an empty file"),
        ("a.xlsx", "PK", "expected one of .csv"),
        ("a.csv", "s,s\na b,1\n", "expected column 's' once"),
    ],
)
def test_a_file_without_rows_is_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        columns.guess(tmp_path / name)


WORD = st.text(string.ascii_letters, min_size=1, max_size=8)


@given(
    names=st.lists(WORD, min_size=4, max_size=4, unique_by=str.lower),
    order=st.permutations(range(4)),
    classes=st.lists(WORD, min_size=2, max_size=5, unique=True),
)
def test_the_longest_texts_and_the_few_values_are_found_in_any_order(tmp_path_factory, names, order, classes):
    """Whatever the columns are called, as long as no name says another meaning."""
    unknown = [f"{name}q" for name in names]  # no usual word
    kinds = [text, lambda i: classes[i % len(classes)], lambda i: 7 * i + 13, lambda i: f"{i}@example.org"]
    path = table(tmp_path_factory.mktemp("c") / "a.csv", [unknown[i] for i in order], *many(*(kinds[i] for i in order)))
    found = columns.guess(path)
    assert (found.text, found.label, found.kind) == (unknown[0], unknown[1], "classification")
