"""Rows of text out of every format that is read."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from pruneonce.errors import DataError
from pruneonce.sources import formats, tables

ROWS = [
    {"text": "plain", "label": "a"},
    {"text": 'said "no", left', "label": "b"},
    {"text": "tab\tand\nnewline", "label": "a"},
    {"text": "Grüße, 東京", "label": ""},
]


def write(path, rows=ROWS):
    """The rows in the format of the suffix."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        delimiter = {".csv": ",", ".tsv": "\t", ".tab": "\t"}[path.suffix]
        quoted = [[f'"{v}"' for v in (r["text"].replace('"', '""'), r["label"])] for r in rows]
        path.write_text("".join(delimiter.join(line) + "\r\n" for line in [["text", "label"], *quoted]), newline="")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".tab", ".jsonl", ".parquet"])
def test_every_format_round_trips(tmp_path, suffix):
    path = write(tmp_path / f"train{suffix}")
    assert list(tables.read(path, ["text", "label"])) == ROWS
    assert list(tables.read(path, ["label"])) == [{"label": r["label"]} for r in ROWS]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_rows_are_counted_and_their_columns_checked(tmp_path, suffix):
    path = write(tmp_path / f"train{suffix}")
    assert tables.count(path, ["text"]) == 4
    assert tables.count(path, ["text"], skip_rows=1) == 3
    with pytest.raises(DataError, match=r"expected column 'body' in .*, found columns"):
        tables.count(path, ["text", "body"])


def test_text_files_have_a_row_a_line(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("\ufeff one \n\ntwo", encoding="utf-8")
    assert list(tables.read(path, ["text"])) == [{"text": "one"}, {"text": ""}, {"text": "two"}]
    with pytest.raises(DataError, match="expected column 'label'"):
        list(tables.read(path, ["text", "label"]))


def test_orange_files_have_two_rows_that_are_not_data(tmp_path):
    path = tmp_path / "train.tab"
    path.write_text("class\ttext\nacq earn\tstring\nclass\tmeta\n\t\nearn\tnet profit\nacq\tbuys stake\n")
    found = list(tables.read(path, ["text", "class"], skip_rows=2))
    assert found == [
        {"text": "", "class": ""},
        {"text": "net profit", "class": "earn"},
        {"text": "buys stake", "class": "acq"},
    ]


def test_values_become_stripped_text_and_nothing_is_empty_text(tmp_path):
    path = write(tmp_path / "a.parquet", [{"text": " x ", "label": 3}, {"text": None, "label": None}])
    assert list(tables.read(path, ["text", "label"])) == [{"text": "x", "label": "3"}, {"text": "", "label": ""}]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_cells_are_as_the_file_has_them(tmp_path, suffix):
    rows = [{"text": " a ", "label": {"text": ["b"], "answer_start": [1]}}, {"text": None, "label": None}]
    path = write(tmp_path / f"a{suffix}", rows)
    assert list(tables.read_as(path, ["text", "label"], lambda *row: row)) == [tuple(row.values()) for row in rows]


def test_classes_of_a_hub_data_set_come_by_name(tmp_path):
    names = ["no", "yes"]
    features = Features({"label": ClassLabel(names=names), "tags": List(ClassLabel(names=names)), "n": Value("int64")})
    rows = [{"label": 1, "tags": [0, 1], "n": 1}, {"label": None, "tags": [], "n": 0}]
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "a.parquet")
    found = list(tables.read_as(tmp_path / "a.parquet", ["label", "tags", "n"], lambda *row: row))
    assert found == [("yes", names, 1), (None, [], 0)]
    assert [row["label"] for row in tables.read(tmp_path / "a.parquet", ["label"])] == ["yes", ""]


def test_a_label_that_the_hub_keeps_secret_is_an_error(tmp_path):
    features = Features({"label": ClassLabel(names=["no", "yes"])})
    Dataset.from_list([{"label": -1}], features=features).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"expected a class of \['no', 'yes'\] in .*, found -1: .* kept secret"):
        list(tables.read_as(tmp_path / "a.parquet", ["label"], str))


def test_a_short_row_has_empty_values(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\nalone\n")
    assert list(tables.read(tmp_path / "a.tsv", ["text", "label"])) == [{"text": "alone", "label": ""}]


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tab", "\t")])
def test_a_row_with_a_field_too_many_is_an_error_that_names_the_line(tmp_path, suffix, delimiter):
    path = tmp_path / f"train{suffix}"
    path.write_text("\n".join(delimiter.join(row) for row in (["text", "label"], ["a", "x"], ["Hello", " world", "x"])))
    with pytest.raises(DataError, match=r"expected 2 fields in the row that ends in line 3 of .*, found 3\. Put quotes"):
        list(tables.read(path, ["text", "label"]))


def test_half_of_an_escaped_surrogate_pair_is_no_text(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "whole \\ud83d\\ude00"}\n{"text": "half \\ud83d"}\n')
    rows = tables.read(path, ["text"])
    assert next(rows) == {"text": "whole \U0001f600"}
    with pytest.raises(DataError, match=r"expected \.jsonl rows in .*surrogates not allowed"):
        next(rows)


def test_a_very_long_field_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "x" * 300_000 + "\n")
    assert len(next(tables.read(tmp_path / "a.csv", ["text"]))["text"]) == 300_000


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".tab", ".jsonl", ".parquet"])
def test_a_missing_column_names_what_is_there(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}")
    with pytest.raises(DataError, match=r"expected column 'topic'.*\['text', 'label'\]"):
        list(tables.read(path, ["text", "topic"]))


def test_a_missing_key_of_a_later_line_is_found(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"txt": "y"}\n')
    with pytest.raises(DataError, match="line 2"):
        list(tables.read(tmp_path / "a.jsonl", ["text"]))


@pytest.mark.parametrize("line", ["5", "null", '"text"', '["text"]'])
def test_a_line_that_is_no_object_is_an_error(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "x"}}\n{line}\n')
    with pytest.raises(DataError, match="line 2"):
        list(tables.read(tmp_path / "a.jsonl", ["text"]))


@pytest.mark.parametrize("suffix", formats.SUFFIXES)
def test_an_empty_file_is_an_error(tmp_path, suffix):
    (tmp_path / f"a{suffix}").touch()
    with pytest.raises(DataError, match="an empty file"):
        list(tables.read(tmp_path / f"a{suffix}", ["text"]))


def test_no_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        list(tables.read(tmp_path / "a.csv", ["text"]))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".tab", ".jsonl", ".txt"])
def test_what_is_not_utf_8_is_an_error_that_names_the_byte(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b'{"text": "caf\xe9"}\n' if suffix == ".jsonl" else b"text\ncaf\xe9\n")
    with pytest.raises(DataError, match="found byte 0xe9"):
        list(tables.read(path, ["text"]))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", b'text\n"never closed\n'), ("a.jsonl", b'{"text": "x"'), ("a.parquet", b"PAR1 and then nothing")],
)
def test_a_file_cut_short_is_an_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="found"):
        list(tables.read(tmp_path / name, ["text"]))


def test_an_unknown_format_is_an_error(tmp_path):
    (tmp_path / "a.xml").write_text("<x/>")
    with pytest.raises(DataError, match=r"expected one of \.csv"):
        list(tables.read(tmp_path / "a.xml", ["text"]))


def test_find_split(tmp_path):
    assert tables.find_split(tmp_path, "train") is None
    for name in ("test.csv", "train.xml", "train.parquet"):
        (tmp_path / name).touch()
    assert tables.find_split(tmp_path, "train") == tmp_path / "train.parquet"


def test_two_files_for_one_split_are_an_error(tmp_path):
    (tmp_path / "train.csv").touch()
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(DataError, match=r"train\.csv.*train\.jsonl"):
        tables.find_split(tmp_path, "train")
