"""`pruneonce predict` and the rows it reads: an answer a line, and one line for what is wrong."""

import io
import json
import re
import sys

import pytest

from pruneonce import command
from pruneonce.deployment import provenance
from pruneonce.errors import DataError, ModelError, PackError
from pruneonce.models import checkpoint
from pruneonce.serving.predictor import KINDS, MOST_CHARACTERS, Predictor
from pruneonce.serving.texts import Texts
from pruneonce.tasks.tagging import TokenClassification
from tests.conftest import TINY
from tests.fuzz import answering

CLASSES = ["kitchen", "river", "weather"]
SAID = {
    "task": "topic",
    "kind": {"kind": "classification", "metric": "accuracy", "classes": CLASSES},
    "columns": {"text": "body", "pair": None},
    "max_tokens": 32,
}


QUESTIONS = {  # of at most 32 tokens: half of a window less 4 are 12
    **{"kind": "question_answering", "stride_tokens": 11, "n_best": 5, "max_answer_tokens": 10, "null_threshold": None},
}
ODD_QUESTIONS = (
    *({"stride_tokens": 12}, {"stride_tokens": -1}, {"stride_tokens": None}, {"n_best": 0}, {"n_best": "5"}),
    *({"max_answer_tokens": 2**70}, {"null_threshold": "0"}, {"null_threshold": True}),
)


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    checkpoint.load_tokenizer(TINY / "model").save_pretrained(folder)
    return (folder / "tokenizer.json").read_text()


@pytest.fixture(scope="module")
def file(int8_onnx, tokenizer_json, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "int8.onnx"
    path.write_bytes(int8_onnx.path.read_bytes())
    provenance.write(path, SAID, tokenizer_json)
    return path


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """The lines that the command prints; an error is its message."""

    def called(*words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["pruneonce", "predict", *map(str, words)])
        try:
            command.main()
        except SystemExit as ended:
            return str(ended.code)
        return capsys.readouterr().out.splitlines()

    return called


@pytest.fixture
def model(tmp_path):
    """A file of a kind of task; pair: the column of the second text."""

    def made(kind, *, pair=None):
        path = tmp_path / f"{kind}.onnx"
        path.write_bytes(answering.file(kind, pair=pair))
        return path

    return made


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("classification", r"(O|B-X|I-X)\t0\.\d{3}\tthe rain"),
        ("multi_label", r"(none|((O|B-X|I-X) 0\.\d{3}(, )?)+)\tthe rain"),
        ("regression", r"-?[\d.e-]+\tthe rain"),
        ("embedding", r"8 numbers: (-?\d\.\d{3}, ){4}\.\.\.\tthe rain"),
        ("token_classification", r"the/(O|B-X|I-X) rain/(O|B-X|I-X)"),
        ("question_answering", r"(no answer|.*rain.*|.*late.*)\tthe rain"),
    ],
)
def test_an_answer_of_every_kind_is_a_line(model, call, kind, line):
    pair = ["--pair", "the late rain"] if kind == "question_answering" else []
    (said,) = call(model(kind, pair="context" if pair else None), "--text", "the rain", *pair)
    assert re.fullmatch(line, said)


def test_an_embedding_of_a_pair_reads_one_text(model, call, tmp_path):
    """Each text of a pair has a vector of its own. `pair` says which texts belong together, for the evaluation."""
    path = model("embedding", pair="other")
    alone = call(path, "--text", "the rain")
    assert len(alone) == 1
    (tmp_path / "a.csv").write_text("body\nthe rain\n")
    assert call(path, "--file", "a.csv") == alone
    assert "expected no --pair: the model reads one text" in call(path, "--text", "the rain", "--pair", "salt")


def test_a_line_for_every_kind():
    assert set(answering.KINDS) == set(KINDS)


def test_a_line_and_an_object_for_each_text(file, call):
    short, long = call(file, "--text", "the  rain", "--text", "salt and soup")
    label, probability, text = short.split("\t")
    assert label in CLASSES
    assert text == "the rain"
    (said,) = map(json.loads, call(file, "--text", "the rain", "--json"))
    assert said["label"] == label == max(said["probabilities"], key=said["probabilities"].get)
    assert f"{said['probability']:.3f}" == probability
    assert set(said["probabilities"]) == set(CLASSES)
    assert sum(said["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert long.endswith("\tsalt and soup")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'n,body\n1,"the rain, late"\n\n2,salt\n'),
        ("a.tsv", "n\tbody\n1\tthe rain, late\n2\tsalt\n"),
        ("a.jsonl", '{"body": "the rain, late"}\n\n{"n": 1, "body": "salt"}\n'),
        ("a.txt", "the rain, late\r\nsalt"),
    ],
)
def test_a_file_of_rows(file, call, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert call(file, "--file", name) == call(file, "--text", "the rain, late", "--text", "salt")


def test_standard_input_is_a_text_a_line(file, call, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("salt\nthe rain\n"))
    assert call(file, "--file", "-") == call(file, "--text", "salt", "--text", "the rain")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"story\nrain\n", "expected column 'body' or 'text' in a.csv, found ['story']. Name it: --column NAME."),
        ("a.csv", b"", "expected rows in a.csv, found an empty file"),
        ("a.csv", b"body\n", "expected rows in a.csv, found none"),
        ("a.csv", b'body\n"rain', "expected .csv rows in a.csv, found a quote that is never closed"),
        ("a.csv", b"body\nr\xff\n", "expected UTF-8 in a.csv, found byte 0xff in line 2"),
        ("a.csv", b"body,body\nrain,salt\n", "expected column 'body' once in a.csv, found it twice"),
        ("a.csv", b"\x1f\x8b", "expected .csv rows in a.csv, found a gzip file. Unpack it: gunzip < FILE > NEW"),
        ("a.jsonl", b"rain\n", "expected .jsonl rows in a.jsonl, found in line 1, at character 1"),
        ("a.jsonl", b'["rain"]\n', "expected an object in line 1 of a.jsonl, found list"),
        ("a.jsonl", b'{"body": "a"}\n{"text": "b"}', "expected column 'body' in line 2 of a.jsonl, found columns ['text']"),
        ("a.jsonl", b'{"body": ["a"]}\n', "expected a text, found list. It stands in line 1 of a.jsonl"),
        ("a.xlsx", b"PK", "expected one of .csv, .tsv, .tab, .jsonl, .parquet, .txt, found a.xlsx"),
        ("a.txt", b"rain\n\n", "expected a text, found an empty one. It stands in line 2 of a.txt."),
        ("a.csv", b"n,body\n\n1,rain\n2\n", "expected a text, found an empty one. It stands in the row that ends in line 4"),
    ],
)
def test_a_file_that_is_wrong_is_one_line(file, call, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    assert call(file, "--file", name).startswith(f"DataError: {said}")


def test_a_file_that_is_not_there(file, call):
    assert call(file, "--file", "no.csv") == "DataError: expected rows in no.csv, found no such file."


def test_pairs_and_columns_that_the_model_does_not_read(file, call):
    said = call(file, "--text", "rain", "--pair", "salt")
    assert said == "DataError: expected no --pair: the model reads one text, found 1 --text and 1 --pair."


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--file", "a.txt", "--pair", "salt"], "expected --pair with --text, found it with --file. There the second text"),
        (["--text", "rain", "--pair", "salt", "--column", "x"], "expected --column with --file, found it with --text."),
        (["--text", "rain", "--pair", "salt", "--pair-column", "x"], "expected --pair-column with --file, found it with"),
        (
            ["--text", "rain", "--pair", "salt", "--skip-rows", "0"],
            "expected --skip-rows with --file, found it with --text.",
        ),
        (["--file", "a.csv"], "expected column 'other' or 'pair' in a.csv, found ['body']. Name it: --pair-column NAME."),
        (["--file", "a.txt"], "expected two columns, found a text a line in a.txt: take a csv or jsonl file."),
        (["--file", "-"], "expected two columns, found a text a line in standard input: take a csv or jsonl file."),
    ],
)
def test_an_option_that_would_be_ignored_is_refused_and_a_missing_column_names_its_option(
    model, call, tmp_path, words, said
):
    for name in ("a.csv", "a.txt"):
        (tmp_path / name).write_text("body\nrain\n")
    assert call(model("classification", pair="other"), *words).startswith(f"DataError: {said}")


def test_a_model_of_one_text_has_no_second_column(file, call, tmp_path):
    (tmp_path / "a.csv").write_text("body,pair\nrain,salt\n")
    assert call(file, "--file", "a.csv", "--pair-column", "pair") == (
        "DataError: expected no --pair-column: the model reads one text. Leave it out."
    )


def test_rows_that_are_no_data_are_skipped(file, call, tmp_path, monkeypatch):
    (tmp_path / "a.tab").write_text("body\nstring\nmeta\nthe rain\n")
    assert call(file, "--file", "a.tab", "--skip-rows", "2") == call(file, "--text", "the rain")
    monkeypatch.setattr(sys, "stdin", io.StringIO("string\nthe rain\n"))
    assert call(file, "--file", "-", "--skip-rows", "1") == call(file, "--text", "the rain")


@pytest.mark.parametrize("rows", ["-1", "x", "9" * 30])
def test_a_number_of_rows_is_one(file, call, capsys, rows):
    assert call(file, "--file", "a.tab", f"--skip-rows={rows}") == "2"
    assert "expected a number of at most 9 digits" in capsys.readouterr().err


@pytest.mark.parametrize("cell", ['{"body": ["the", "rain"]}', '{"body": "[\\"the\\", \\"rain\\"]"}'])
def test_a_file_of_words_to_be_tagged(model, call, tmp_path, cell):
    (tmp_path / "a.jsonl").write_text(cell)
    path = model("token_classification")
    assert call(path, "--file", "a.jsonl") == call(path, "--text", "the rain")


def test_a_line_of_standard_input_is_named(file, call, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("rain\n\nsalt\n"))
    assert (
        call(file, "--file", "-") == "DataError: expected a text, found an empty one. It stands in line 2 of standard input."
    )


class TestPredictor:
    def test_rows_that_are_no_text(self, file):
        predictor = Predictor(file, threads=1)
        for row, found in ((3, "int"), (None, "NoneType"), (["a", "b"], "str, str"), ([], "nothing"), (b"a", "int")):
            with pytest.raises(DataError, match=rf"expected a text in row 0, found {found}\.$"):
                predictor([row])

    @pytest.mark.parametrize("text", ["hello", b"hello", ""])
    def test_one_text_is_no_list_of_texts(self, file, text):
        with pytest.raises(DataError, match=r"expected a list of texts, found (str|bytes)\. Put it into a list"):
            Predictor(file, threads=1)(text)

    def test_the_longest_text(self, file):
        predictor = Predictor(file, threads=1)
        assert predictor(["a " * (MOST_CHARACTERS // 2)])[0]["label"] in CLASSES
        with pytest.raises(DataError, match="at most 100000 characters in row 1, found 100001"):
            predictor(["a", "a" * (MOST_CHARACTERS + 1)])

    @pytest.mark.parametrize(
        ("kind", "row", "what"),
        [
            ("classification", ("rain", " \n"), "second text"),
            ("regression", ("", "rain"), "text"),
            ("question_answering", ("rain", ""), "context"),
            ("question_answering", (" ", "rain"), "question"),
        ],
    )
    def test_an_empty_text_of_a_pair_is_refused(self, model, kind, row, what):
        """Training drops such rows."""
        with pytest.raises(DataError, match=rf"expected a {what} in row 1, found an empty one\.$"):
            Predictor(model(kind, pair="other"), threads=1)([("rain", "salt"), row])

    def test_a_context_that_is_too_long_is_not_said_to_be_cut(self, model):
        predictor = Predictor(model("question_answering", pair="other"), threads=1)
        with pytest.raises(DataError, match="The model reads a context in windows of 24 tokens: cut the text"):
            predictor([("rain", "a" * (MOST_CHARACTERS + 1))])

    @pytest.mark.parametrize(
        ("cell", "label"),
        [
            ("the rain", "O O"),
            (["the", "rain"], ["O", "O"]),
            ('["the", "rain"]', '["O", "O"]'),
            ("['the', 'rain']", "['O', 'O']"),
            (["New York", "rain"], ["O", "O"]),
            ("[the rain]", "O O"),
        ],
    )
    def test_words_to_be_tagged_are_read_as_in_training(self, model, cell, label):
        predictor = Predictor(model("token_classification"), threads=1)
        text, (words, _) = (example := TokenClassification.example(cell, label)).texts[0], example.label
        alone, among_columns = predictor([cell, (cell,)])
        assert alone == among_columns
        assert alone["words"] == list(words)
        assert alone["tags"][0] == predictor([text])[0]["tags"][0]

    def test_a_word_that_was_not_read_has_no_tag(self, model, call):
        """Twenty-four tokens, of which two begin and close the text."""
        path = model("token_classification")
        (answer,) = Predictor(path, threads=1)(["the " * 30])
        assert set(answer["tags"][:22]) <= set(answering.CLASSES)
        assert answer["tags"][22:] == answer["probabilities"][22:] == [None] * 8
        assert call(path, "--text", "the " * 30)[0].endswith(" the/?" * 8)

    def test_no_rows_no_answers_and_a_file_s_name_is_a_path(self, file):
        assert Predictor(str(file), threads=1)([]) == Predictor(file, threads=1)([]) == []

    def test_a_file_that_does_not_say_enough(self, int8_onnx, file, tmp_path):
        with pytest.raises(PackError, match="does not say its task, its labels and its tokenizer"):
            Predictor(int8_onnx.path)
        silent = tmp_path / "silent.onnx"
        silent.write_bytes(int8_onnx.path.read_bytes())
        provenance.write(silent, SAID, None)
        with pytest.raises(PackError, match="does not say a tokenizer"):
            Predictor(silent)

    def test_a_tokenizer_that_is_none(self):
        with pytest.raises(ModelError, match="expected a tokenizer in the file's metadata, found"):
            Texts("{}", max_tokens=8)


def test_the_column_of_training_or_text(file, call, tmp_path):
    (tmp_path / "a.csv").write_text("text\nthe rain\n")
    (tmp_path / "b.csv").write_text("text,body\nsalt,the rain\n")
    assert call(file, "--file", "a.csv") == call(file, "--file", "b.csv") == call(file, "--text", "the rain")
    (tmp_path / "c.csv").write_text("story\nthe rain\n")
    assert "expected column 'body' or 'text' in c.csv, found ['story']" in call(file, "--file", "c.csv")


def test_half_of_a_surrogate_pair_is_refused(file, call, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}')
    assert "expected Unicode in row 0, found half of a surrogate pair" in call(file, "--text", "a\udcff")
    assert "expected .jsonl rows in a.jsonl, found in line 1: 'utf-8' codec can't" in call(file, "--file", "a.jsonl")


def test_json_that_is_too_deep_is_refused(file, call, tmp_path):
    (tmp_path / "a.jsonl").write_text("[" * 100_000)
    assert "expected .jsonl rows in a.jsonl, found in line 1: maximum recursion depth" in call(file, "--file", "a.jsonl")


def test_standard_input_is_utf_8_or_refused(file, call, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("caf\u00e9".encode()), encoding="ascii"))
    assert call(file, "--file", "-") == call(file, "--text", "caf\u00e9")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert "expected UTF-8 on standard input, found byte 0xff" in call(file, "--file", "-")
    monkeypatch.setattr(sys, "stdin", None)
    assert "found that it is closed" in call(file, "--file", "-")


def test_a_session_of_very_many_threads_is_refused(file, call, capsys):
    assert call(file, "--text", "a", "--threads", "99999999999") == "2"
    assert "at most 3 digits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *(("kind", SAID["kind"] | {"kind": other}, "expected the key kind") for other in ({}, [], None, 3)),
        *(
            ("kind", SAID["kind"] | {"classes": other}, "expected the key kind")
            for other in ("abc", [1], ["a", ["b"]], ["a", "a"])
        ),
        *(("kind", QUESTIONS | other, "expected the key kind") for other in ODD_QUESTIONS),
        ("kind", "classification", "expected the key kind"),
        ("kind", {"kind": "poetry"}, "expected the key kind"),
        ("kind", {"kind": "classification"}, "expected the key kind"),
        ("kind", SAID["kind"] | {"classes": ["one"]}, "expected a label for each of the 3 outputs"),
        ("columns", None, "expected the key columns"),
        ("columns", {"text": ["body"], "pair": None}, "expected the key columns"),
        *(("max_tokens", other, "expected the key max_tokens") for other in (0, True, 2**63, 9.5)),
        ("max_tokens", -5, "expected the key max_tokens"),
        ("max_tokens", "x", "expected the key max_tokens"),
    ],
)
def test_metadata_that_somebody_edited_is_refused(int8_onnx, tokenizer_json, tmp_path, key, value, message):
    path = tmp_path / "odd.onnx"
    path.write_bytes(int8_onnx.path.read_bytes())
    provenance.write(path, SAID | {key: value}, tokenizer_json)
    with pytest.raises(PackError, match=message):
        Predictor(path)


def test_the_tags_of_a_pair_are_refused(int8_onnx, tokenizer_json, tmp_path):
    """The second text's tokens would be looked for among the words of the first."""
    path, kind = tmp_path / "odd.onnx", {"kind": "token_classification", "classes": CLASSES}
    path.write_bytes(int8_onnx.path.read_bytes())
    provenance.write(path, SAID | {"kind": kind, "columns": {"text": "body", "pair": "other"}}, tokenizer_json)
    with pytest.raises(PackError, match="expected the key columns"):
        Predictor(path)


def test_what_the_tokenizer_s_own_code_meets_is_one_error(tokenizer_json):
    """Its Rust code panics, which is no Exception: room for 19 tokens, of which 20 are shared."""
    texts = Texts(tokenizer_json, max_tokens=24)
    assert len(list(texts.windows("rain rain", "salt and soup " * 9, stride_tokens=18))) > 1
    with pytest.raises(
        ModelError, match="expected a tokenizer in the file's metadata, found: `stride` must be strictly less"
    ):
        list(texts.windows("rain rain", "salt and soup " * 9, stride_tokens=20))


def test_a_registered_model_needs_the_folder_of_its_project(call):
    assert "A registered model is found in the folder of its project" in call("models:/topic@champion", "--text", "a")
