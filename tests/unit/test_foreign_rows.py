"""Files of rows that are not what they seem: named for what they are, in the line where it is, with advice that works."""

import gzip
import json
import os
import shutil
import sqlite3
import subprocess
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pruneonce.errors import DataError
from pruneonce.sources import formats, tables

TEXT = "text,label\nGrüße,x\nworld,y\n"


def read(path, columns=("text", "label")):
    """The rows, as a stage reads them; `plan` counts them and must say the same."""
    said = []
    for ask in (tables.count, lambda *asked: len(list(tables.read(*asked)))):
        try:
            said.append(ask(path, columns))
        except DataError as error:
            said.append(str(error))
    assert said[0] == said[1]
    return list(tables.read(path, columns))


def sqlite(path):
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as base:
        base.execute("create table rows (text, label)")
    base.close()


def sheet(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")


PAGE = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
DISGUISES = {  # what is written under another format's ending -> what must be said of it
    "gzip": (lambda path: path.write_bytes(gzip.compress(TEXT.encode())), r"found a gzip file\. Unpack it: gunzip"),
    "xlsx": (sheet, r"found a zip archive or a spreadsheet \(xlsx\)\. .*save the sheet as CSV in UTF-8"),
    "parquet": (lambda path: pq.write_table(pa.table({"text": ["a"]}), path), r"found a parquet file\. .*ending \.parquet"),
    "sqlite": (sqlite, r"found an SQLite database\. Write the table as csv or jsonl"),
    "lfs": (lambda path: path.write_text(POINTER), r"found the pointer of Git LFS, not the file\. .*git lfs pull"),
    "page": (lambda path: path.write_text(PAGE), r"found a web page\. .*Get the file again"),
    "page after a BOM": (lambda path: path.write_text(f"\ufeff\n {PAGE}"), r"found a web page\. "),
    "utf-16": (lambda path: path.write_text(TEXT, encoding="utf-16"), r"found text in UTF-16\. .*iconv -f utf-16 -t utf-8"),
    "utf-16-be with a BOM": (
        lambda path: path.write_bytes(b"\xfe\xff" + TEXT.encode("utf-16-be")),
        r"found text in UTF-16\. .*iconv -f utf-16 -t",
    ),
    "utf-16-le": (
        lambda path: path.write_text(TEXT, encoding="utf-16-le"),
        r"found text in UTF-16\. .*iconv -f utf-16le -t",
    ),
    "utf-16-be": (
        lambda path: path.write_text(TEXT, encoding="utf-16-be"),
        r"found text in UTF-16\. .*iconv -f utf-16be -t",
    ),
    "utf-32": (lambda path: path.write_text(TEXT, encoding="utf-32"), r"found text in UTF-32\. .*iconv -f utf-32 -t utf-8"),
}


@pytest.mark.parametrize("suffix", [*formats.SUFFIXES])
@pytest.mark.parametrize("disguise", DISGUISES)
def test_another_format_is_named(tmp_path, disguise, suffix):
    write, message = DISGUISES[disguise]
    path = tmp_path / f"train{suffix}"
    write(path)
    if (disguise, suffix) == ("parquet", ".parquet"):
        assert read(path, ["text"]) == [{"text": "a"}]
        return
    if suffix == ".parquet" and disguise in ("utf-16-le", "utf-16-be"):
        message = "found: Parquet magic bytes not found"
    with pytest.raises(DataError, match=rf"expected {suffix} rows in .*train{suffix}, {message}"):
        read(path, ["text"])
    assert len(DISGUISES) == 12


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_the_advice_on_encodings_works(tmp_path, encoding):
    path = tmp_path / "train.csv"
    path.write_text(TEXT, encoding=encoding)
    with pytest.raises(DataError) as caught:
        read(path)
    if not shutil.which("iconv"):
        pytest.skip("no iconv here")
    command = "iconv" + str(caught.value).partition("iconv")[2].removesuffix(".")
    done = command.replace("FILE", str(path)).replace("NEW", str(tmp_path / "new.csv"))
    subprocess.run(["sh", "-c", done], check=True)
    assert read(tmp_path / "new.csv")[0] == {"text": "Grüße", "label": "x"}


def test_what_begins_like_another_format_is_still_text(tmp_path):
    for text in ("PK is a name", "BZh", "Rar!", "<b>bold</b>", "<hr>", "an <html> page", "a < b", "version 2", "%P", "7z"):
        (tmp_path / "train.txt").write_text(f"{text}\nmore\n")
        assert read(tmp_path / "train.txt", ["text"])[0] == {"text": text}


def test_a_folder_and_an_ending_that_is_not_read(tmp_path):
    (tmp_path / "train.csv").mkdir()
    with pytest.raises(DataError, match=r"expected rows in .*train\.csv, found a folder"):
        read(tmp_path / "train.csv")
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(DataError, match=r"expected one of \.csv, .*\.txt, found train\.json"):
        read(tmp_path / "train.json")


class TestLines:
    @pytest.mark.parametrize("broken", [1, 2, 31, 40])
    @pytest.mark.parametrize(
        ("line", "found"),
        [
            ("{'text': 'x'}", "at character 2: Expecting property name"),
            ('{"text": "x"', "Expecting ',' delimiter"),
            ('{"text": "x"} {"text": "y"}', "at character 15: Extra data"),
            ("plain", "at character 1: Expecting value"),
            ("[" * 100_000, "recursion"),
            ('{"text": "\\ud83d"}', "surrogates not allowed"),
            ('{"text": ' + "1" * 5000 + "}", "4300 digits"),
        ],
    )
    def test_of_broken_json(self, tmp_path, broken, line, found):
        lines = [json.dumps({"text": f"é {i}"}) for i in range(40)]
        lines[broken - 1] = line
        (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
        with pytest.raises(DataError, match=rf"expected \.jsonl rows in .*, found in line {broken}\D.*{found}"):
            read(tmp_path / "train.jsonl", ["text"])

    @pytest.mark.parametrize("text", ['[{"text": "a"}, {"text": "b"}]', '[\n  {"text": "a"}\n]\n', '{\n  "text": "a"\n}\n'])
    def test_of_one_document_of_json(self, tmp_path, text):
        (tmp_path / "train.jsonl").write_text(text)
        with pytest.raises(DataError, match=r"line 1\D.*on a line of its own.*jq -c"):
            read(tmp_path / "train.jsonl", ["text"])

    @pytest.mark.parametrize("suffix", [".csv", ".tsv", ".tab", ".txt", ".jsonl"])
    @pytest.mark.parametrize("broken", [2, 31, 3000])
    def test_of_a_byte_that_is_not_utf_8(self, tmp_path, suffix, broken):
        """Past the first buffer that is read, too."""
        good = '{"text": "café"}' if suffix == ".jsonl" else "café au lait"
        lines = [b'{"text": "x"}' if suffix == ".jsonl" else b"text", *[good.encode()] * 3200]
        lines[broken - 1] = good.encode("latin-1")
        (tmp_path / f"train{suffix}").write_bytes(b"\n".join(lines))
        with pytest.raises(DataError, match=rf"found byte 0xe9 in line {broken}\. If it is Latin-1"):
            read(tmp_path / f"train{suffix}", ["text"])

    def test_of_a_row_with_a_field_too_many(self, tmp_path):
        (tmp_path / "train.csv").write_text('text,label\n"two\nlines",x\n\na,b,x\n')
        with pytest.raises(DataError, match=r"expected 2 fields in the row that ends in line 5 of .*, found 3"):
            read(tmp_path / "train.csv")


class TestColumns:
    def test_of_a_header_that_stand_twice(self, tmp_path):
        for suffix, delimiter in formats.DELIMITERS.items():
            path = tmp_path / f"train{suffix}"
            path.write_text(
                "\n".join(delimiter.join(row) for row in (["text", "label", "id", "text"], ["a", "x", "1", "b"]))
            )
            with pytest.raises(
                DataError, match=r"expected column 'text' once in .*, found it twice: \['text', 'label', 'id'"
            ):
                read(path)
            path.write_text("\n".join(delimiter.join(row) for row in (["text", "", "label", "", "id", "id"], [*"abxcde"])))
            assert read(path) == [{"text": "a", "label": "x"}], "who does not want them does not mind"

    def test_of_parquet_that_stand_twice(self, tmp_path):
        table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["x"]), pa.array(["b"])], ["text", "label", "text"])
        pq.write_table(table, tmp_path / "train.parquet")
        with pytest.raises(DataError, match=r"expected column 'text' once in .*train\.parquet, found it twice"):
            read(tmp_path / "train.parquet")
        assert read(tmp_path / "train.parquet", ["label"]) == [{"label": "x"}]

    def test_of_an_object_that_stand_twice(self, tmp_path):
        path = tmp_path / "train.jsonl"
        path.write_text('{"text": "a", "label": "x"}\n{"text": "a", "label": "x", "text": "b"}\n')
        with pytest.raises(DataError, match=r"expected column 'text' once in line 2 of .*train\.jsonl, found it twice"):
            read(path)
        path.write_text('{"text": "a", "label": "x", "id": 1, "id": 2}\n')
        assert read(path) == [{"text": "a", "label": "x"}]

    def test_of_answers_that_stand_twice(self, tmp_path):
        path = tmp_path / "train.jsonl"
        path.write_text('{"text": "a", "label": {"text": ["a"], "text": ["b"], "answer_start": [0]}}\n')
        with pytest.raises(DataError, match=r"expected column 'text' once in line 1 of "):
            list(tables.read_as(path, ["text", "label"], lambda *row: row))


LABELS = [("one", "x"), ("two", "y"), ("three", "x"), ("four", "y"), ("five", "x")]


def lines(*rows):
    return "\n".join(["text,label", *rows]) + "\n"


class TestQuotes:
    @pytest.mark.parametrize(("before", "line"), [([], 2), (["a,x", '"two\nlines",y'], 5)])
    def test_one_that_never_closes(self, tmp_path, before, line):
        (tmp_path / "train.csv").write_text(lines(*before, '"Hello,x', "plain,y", "more,x"))
        with pytest.raises(
            DataError, match=rf"found a quote that is never closed, in the row that begins in line {line}\. "
        ):
            read(tmp_path / "train.csv")

    def test_one_that_closes_before_text(self, tmp_path):
        (tmp_path / "train.csv").write_text(lines("a,x", '"Hello,x', '"World,y', "more,x"))
        with pytest.raises(DataError, match=r"in line 4: .*in the row that begins in line 3\. .*written twice"):
            read(tmp_path / "train.csv")

    @pytest.mark.parametrize(
        "swallowing",
        [
            ['"Hello,x', 'size 5",y'],
            ['"Hello,x', "plain,y", 'size 5",y'],
            ['"Hello,x', "plain,y", "said ,x", 'size 5",x'],
            ['"Hello,x', "plain,y", 'size 5,y"'],  # closes at the end of its row
        ],
    )
    @pytest.mark.parametrize("newline", ["\n", "\r\n"])
    def test_one_that_closes_in_a_later_row_is_counted(self, tmp_path, swallowing, newline, capsys):
        rows = lines(*map(",".join, LABELS), *swallowing, "last,x").replace("\n", newline)
        (tmp_path / "train.csv").write_bytes(rows.encode())
        read(tmp_path / "train.csv")
        assert "train.csv: 1 rows hold a quoted text that reads like rows of the file; the first begins in line 7. " in (
            capsys.readouterr().err
        )

    def test_in_the_last_column_and_between_others(self, tmp_path, capsys):
        (tmp_path / "train.tsv").write_text('label\ttext\nx\ta\ny\tb\nx\t"Hello\ny\tplain\nx\tsize 5"\ny\tc\n')
        tables.count(tmp_path / "train.tsv", ["text"])
        (tmp_path / "train.csv").write_text('id,text,label\n1,a,x\n2,b,y\n3,"Hello,x\n4,plain,y\n5,size 5",x\n6,c,y\n')
        tables.count(tmp_path / "train.csv", ["text"])
        assert capsys.readouterr().err.count("the first begins in line 4") == 2

    @pytest.mark.parametrize(
        "text",
        [
            "two\nlines",
            "Dear Bob,\nthank you, and\ngood bye",
            "Dear Bob, hello\nI said\nno",
            "It costs 1,000\na year",
            "a\n\nb",
            "From: x\nSubject: y, z\n\nyes, no",
            'he said "yes,x"\nand left, at last\nhome',
            "he said it was great,1\nof the best",  # may be swallowed rows; is said, and no error
        ],
    )
    def test_lines_within_a_text_are_text(self, tmp_path, text):
        quoted = '"{}",x'.format(text.replace('"', '""'))
        (tmp_path / "train.csv").write_text(lines(*map(",".join, LABELS), "six,5", quoted))
        assert read(tmp_path / "train.csv")[-1] == {"text": text, "label": "x"}


class TestSplits:
    @pytest.mark.parametrize("name", ["train.json", "train.csv.gz", "train.xlsx", "Train.csv", "train.CSV"])
    def test_a_file_that_is_not_read_is_not_as_if_there_were_none(self, tmp_path, name):
        (tmp_path / name).touch()
        for find in (tables.find_split, tables.need_split):
            with pytest.raises(DataError) as caught:
                find(tmp_path, "train")
            message = f"expected a file train.* in source '{tmp_path.name}', found ['{name}']. Its ending must be one of "
            assert str(caught.value).startswith(f"{message}.csv .tsv .tab .jsonl .parquet .txt; ")

    def test_none_at_all(self, tmp_path):
        (tmp_path / "training.csv").touch()
        assert tables.find_split(tmp_path, "train") is None
        with pytest.raises(
            DataError, match=r"expected a file train\.\* in source .*, found \['training\.csv'\]\. Its ending"
        ):
            tables.need_split(tmp_path, "train")
        with pytest.raises(DataError, match=r"found \[\]"):
            tables.need_split(tmp_path / "nowhere", "train")


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_pipe_is_no_file_to_wait_for(tmp_path):
    os.mkfifo(tmp_path / "train.csv")
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "train.csv")
