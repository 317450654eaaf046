"""What a cell of any type means as a text and as a label of each kind: one name, missing, or one error."""

import datetime
import io
import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pruneonce.errors import DataError
from pruneonce.sources import cells, tables
from pruneonce.tasks import classes, examples
from pruneonce.tasks.answering import QuestionAnswering
from pruneonce.tasks.classification import Classification, MultiLabel, Regression
from pruneonce.tasks.tagging import TokenClassification

NAN, INF = float("nan"), float("inf")
TEXTS = [  # cell, as a text, as a class
    (" x ", "x", "x"),
    (b" caf\xc3\xa9 ", "café", "café"),
    (True, "True", "True"),
    (np.bool_(False), "False", "False"),
    (3, "3", "3"),
    (np.int64(3), "3", "3"),
    (3.0, "3.0", "3"),
    (np.float32(3.0), "3.0", "3"),
    (-0.0, "-0.0", "0"),
    (1e16, "1e+16", "10000000000000000"),
    (3.5, "3.5", "3.5"),
    (Decimal("3.00"), "3.00", "3"),
    (Decimal("3.50"), "3.50", "3.50"),
    (datetime.date(2024, 5, 1), "2024-05-01", "2024-05-01"),
    (datetime.datetime(2024, 5, 1, 12), "2024-05-01 12:00:00", "2024-05-01 12:00:00"),
    *((missing, "", "") for missing in (None, NAN, np.float64(NAN), np.float32(NAN), Decimal("nan"), "", " ", b"")),
]
NO_TEXT = [["x", "y"], [], {"a": 1}, {}, ("x",), {"x"}, np.array(["x"]), b"caf\xe9", b"\xff\xfe", Ellipsis]


@pytest.mark.parametrize(("cell", "text", "name"), TEXTS, ids=lambda value: repr(value)[:30])
def test_a_text_and_a_class(cell, text, name):
    assert cells.text(cell) == text
    assert cells.class_name(cell) == name
    found = Classification.example(cell, cell)
    assert (found.texts, found.label, found.stratum) == ((text,), name or None, name)
    assert Classification.example("a", cell, "x").texts == ("a", text)
    assert MultiLabel.example("a", [cell, "z"]).label == tuple(sorted({"z", name} - {""}))
    several = MultiLabel.example("a", cell).label
    assert several == ((name,) if name else () if isinstance(cell, str | bytes) else None), (
        "empty is no label, None is missing"
    )
    tagged = TokenClassification.example(["w", "v"], [cell, "O"]).label
    assert tagged == ((("w", "v"), (name, "O")) if name else None), "a tag that is missing is no class"
    assert QuestionAnswering.example(cell, "a b", {"text": ["b"], "answer_start": [2]}).texts[0] == text


@pytest.mark.parametrize("cell", NO_TEXT, ids=lambda value: repr(value)[:30])
def test_what_is_no_text_is_an_error_in_every_role(cell):
    answers = {"text": ["b"], "answer_start": [2]}
    for make in (
        lambda: cells.text(cell),
        lambda: Classification.example(cell, "x"),
        lambda: Classification.example("a", cell, "x"),
        lambda: Classification.example("a", cell),
        lambda: Regression.example(cell, 1.0),
        lambda: Regression.example("a", cell),
        lambda: MultiLabel.example(cell, ["x"]),
        lambda: MultiLabel.example("a", [cell]),
        lambda: TokenClassification.example([cell], ["O"]),
        lambda: TokenClassification.example(["w"], [cell]),
        lambda: QuestionAnswering.example(cell, "a b", answers),
        lambda: QuestionAnswering.example("q", cell, answers),
    ):
        with pytest.raises(DataError, match="expected text"):
            make()
    if not isinstance(cell, list):
        for make in (lambda: MultiLabel.example("a", cell), lambda: TokenClassification.example("w", cell)):
            with pytest.raises(DataError, match="expected text"):
                make()
    with pytest.raises(DataError, match="expected answers like"):
        QuestionAnswering.example("q", "a b", {"text": [cell], "answer_start": [2]})


def test_an_infinite_number_is_no_class():
    for make in (Classification.example, MultiLabel.example):
        with pytest.raises(DataError, match="expected a class, found the number inf"):
            make("a", INF)
    assert cells.text(INF) == "inf"


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        *((3, 3.0), (2.5, 2.5), (" 2.5 ", 2.5), ("1e-3", 0.001), (Decimal("1.5"), 1.5), (np.float32(0.5), 0.5), (b"2", 2.0)),
        *((missing, None) for missing in (None, NAN, np.float64(NAN), "", "nan", "NaN", b"")),
        *(("inf", INF), (-INF, -INF)),
    ],
)
def test_a_number(cell, value):
    assert Regression.example("a", cell).label == value


@pytest.mark.parametrize("cell", ["much", "1_000", "3,5", True, "0x10", datetime.date(2024, 5, 1)])
def test_what_is_no_number(cell):
    with pytest.raises(DataError, match="expected a number as label"):
        Regression.example("a", cell)


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("y, x,,y", ("x", "y")),
        ("['x', 'y']", ("x", "y")),
        ("['x','y']", ("x", "y")),
        (' ["x", "y"] ', ("x", "y")),
        ("['x']", ("x",)),
        (b"['x', 'y']", ("x", "y")),
        (b"x, y", ("x", "y")),
        ("[]", ()),
        ("['a, b', \"it's\"]", ("a, b", "it's")),
        ("[1, 2.0, None]", ("1", "2")),
        ("[3, null]", ("3",)),
        ("it's, rock 'n' roll", ("it's", "rock 'n' roll")),
        ("(a), b (c)", ("(a)", "b (c)")),
    ],
)
def test_labels_of_a_text(cell, labels):
    assert MultiLabel.example("a", cell).label == labels


@pytest.mark.parametrize(
    "cell",
    [
        "['x' 'y']",  # as numpy prints an array; Python reads one word
        *("['x', 'y'", "[x, y]", "['x', 'y'}", "('x', 'y')", "{'x', 'y'}", "{'a': 1, 'b': 2}", "'x', 'y'", '"x","y"'),
        *("x (a, b)", "['x', ['y']]", "[" * 5000 + "]" * 5000, "['x', nan]", "['x', 'y' ...]"),
    ],
)
def test_labels_that_would_be_torn(cell):
    with pytest.raises(DataError, match=r"expected (labels with commas|a list like|text)"):
        MultiLabel.example("a", cell)


def test_words_and_tags_that_are_lists_in_text():
    wanted = TokenClassification.example(["new york", "b"], ["B-X", "O"])
    assert TokenClassification.example("['new york', 'b']", "['B-X', 'O']") == wanted
    assert TokenClassification.example('["new york", "b"]', '["B-X", "O"]') == wanted
    assert TokenClassification.example("[ b ]", "O B-X O").label[0] == ("[", "b", "]"), "words may be brackets"
    with pytest.raises(DataError, match="expected a list like"):
        TokenClassification.example("a b", "['O' 'B-X']")


@pytest.mark.parametrize(
    ("starts", "fits"), [([2], True), ([2.0], True), ([np.int32(2)], True), ([2.7], False), ([NAN], False), ([INF], False)]
)
def test_where_an_answer_starts(starts, fits):
    answers = {"text": [b"b"], "answer_start": starts}
    if fits:
        assert QuestionAnswering.example("q", "a b", answers).label == (("b", 2),)
    else:
        with pytest.raises(DataError, match="expected answers like"):
            QuestionAnswering.example("q", "a b", answers)


def test_a_context_keeps_its_characters_and_may_be_bytes():
    assert QuestionAnswering.example("q", b"  a b", {"text": [], "answer_start": []}).texts[1] == "  a b"


PARQUET = [  # an array of four cells, the last missing -> classes of the others
    (pa.array([b"x", b"y", b"x", None]), "xyx"),
    (pa.array([b"x", b"y", b"x", None], pa.large_binary()), "xyx"),
    (pa.array([b"x", b"y", b"x", None], pa.binary(1)), "xyx"),
    (pa.array(["x", "y", "x", None], pa.large_string()), "xyx"),
    (pa.array(["x", "y", "x", None]).dictionary_encode(), "xyx"),
    (pa.array([1.0, 2.0, 1.0, NAN]), "121"),
    (pa.array([1.0, 2.0, 1.0, None], pa.float32()), "121"),
    (pa.array([1, 2, 1, None], pa.int8()), "121"),
    (pa.array([Decimal("1.00"), Decimal("2.00"), Decimal("1.00"), None]), "121"),
    (pa.array([True, False, True, None]), ("True", "False", "True")),
]


@pytest.mark.parametrize(("cells", "classes"), PARQUET, ids=lambda value: str(getattr(value, "type", "")))
def test_a_column_of_parquet(tmp_path, cells, classes):
    pq.write_table(pa.table({"text": pa.array(["a", "b", "c", "d"]), "label": cells}), tmp_path / "train.parquet")
    rows = list(tables.read_as(tmp_path / "train.parquet", ["text", "label"], Classification.example))
    kept, dropped = examples.clean(rows)
    assert [row.label for row in kept] == list(classes)
    assert dropped == examples.Dropped(empty=1)
    pq.write_table(pa.table({"text": cells}), tmp_path / "test.parquet")
    assert [row["text"] == "" for row in tables.read(tmp_path / "test.parquet", ["text"])] == [False, False, False, True]


def write(path, text, label):
    """A file with three rows, the second of which has these cells."""
    rows = [{"text": "a", "label": "x"}, {"text": text, "label": label}, {"text": "c", "label": "y"}]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        columns = {}
        for name in ("text", "label"):
            cells = [row[name] for row in rows]
            nested = isinstance(cells[1], list | dict | bytes)
            columns[name] = pa.array([None, cells[1], None] if nested else cells)
        pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(("suffix", "where"), [(".jsonl", "line 2"), (".parquet", "row 2")])
@pytest.mark.parametrize(("text", "label", "column"), [(["b"], "x", "text"), ({"b": 1}, "x", "text"), ("b", ["x"], "label")])
def test_the_row_and_the_column_are_named(tmp_path, suffix, where, text, label, column):
    path = write(tmp_path / f"train{suffix}", text, label)
    with pytest.raises(DataError, match=rf"expected text, found the .*It stands in column '{column}', {where} of .*train"):
        list(tables.read_as(path, ["text", "label"], Classification.example))
    with pytest.raises(DataError, match=rf"expected text, found the .*It stands in column '{column}', {where} of .*train"):
        list(tables.read(path, ["text", "label"]))


def test_bytes_that_are_not_utf_8_are_named(tmp_path):
    path = write(tmp_path / "train.parquet", b"caf\xe9", "x")
    with pytest.raises(DataError, match=r"expected text in UTF-8, found the bytes .*column 'text', row 2 of"):
        list(tables.read(path, ["text"]))


def test_the_row_of_a_label_that_is_wrong(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text('text,label\n"two\nlines",1\nb,much\n')
    with pytest.raises(
        DataError, match=r"expected a number as label, found 'much'.*in the row that ends in line 4 of .*train\.csv"
    ):
        list(tables.read_as(path, ["text", "label"], Regression.example))


def test_nan_of_jsonl_is_missing(tmp_path):
    (tmp_path / "train.jsonl").write_text(
        '{"text": "a", "label": NaN}\n{"text": NaN, "label": 1}\n{"text": "c", "label": 1.0}\n'
    )
    rows = list(tables.read_as(tmp_path / "train.jsonl", ["text", "label"], Classification.example))
    kept, dropped = examples.clean(rows)
    assert ([row.label for row in kept], dropped.empty) == (["1"], 2)


class TestNames:
    @pytest.mark.parametrize("name", ["nan", "NaN", "<NA>", "NaT", "#N/A"])
    def test_a_program_s_word_for_missing_is_no_class_by_accident(self, name):
        with pytest.raises(DataError, match=rf"expected classes, found '{name}' in 2 rows, .*`labels`"):
            classes.label_names(["a", name, "b", name], [], None)
        assert classes.label_names(["a", name], [], ["a", name]) == ["a", name], "who names it means it"

    @pytest.mark.parametrize("name", ["None", "none", "NA", "null", "N/A"])
    def test_what_may_be_meant_is_said(self, name):
        assert classes.label_names(["a", name], [], None) == sorted(["a", name])
        assert classes.maybe_missing(["a", name]) == [name]

    def test_two_spellings_of_a_number_are_not_two_classes(self):
        with pytest.raises(DataError, match=r"expected one name for a class, found '3' and '3\.0'"):
            classes.label_names(["3", "3.0", "4"], [], None)
        assert classes.label_names(["3.0", "4.0", "1.10", "1.1"], [], None) == ["1.1", "1.10", "3.0", "4.0"]

    def test_the_classes_that_a_split_lacks(self):
        kinds = {
            Classification: [("a", "x"), ("b", "y"), ("c", "x")],
            MultiLabel: [("a", "x, y"), ("b", ""), ("c", "y")],
            TokenClassification: [("a b", "x y"), ("b", "x"), ("c", "y")],
        }
        for kind, rows in kinds.items():
            made = [kind.example(*row) for row in rows]
            assert classes.absent(map(kind.classes_of, made), "xyz") == ["z"]
            assert classes.absent(map(kind.classes_of, made[1:2]), "xyz")[-1] == "z"
            assert classes.absent([], "xy") == ["x", "y"]


def test_the_table_of_types_is_whole():
    """What pyarrow and JSON can give is in TEXTS or in NO_TEXT."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"t": pa.array([datetime.timedelta(1)]), "u": pa.array([datetime.time(1)])}), buffer)
    (row,) = pq.read_table(buffer).to_pylist()
    assert [cells.text(cell) for cell in row.values()] == ["1 day, 0:00:00", "01:00:00"]
    given = {type(cell) for cell, *_ in TEXTS} | {type(cell) for cell in NO_TEXT}
    assert {str, bytes, bool, int, float, Decimal, datetime.date, datetime.datetime, type(None), list, dict} <= given
