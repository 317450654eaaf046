"""Laws of damaged files: whatever bytes change, there are rows, or one error that names the file."""

import contextlib
import io
import json
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.plan import inventory
from pruneonce.errors import DataError
from pruneonce.sources import tables

ROWS = [{"text": f'text {i}, "quoted" ünd', "label": "abc"[i % 3]} for i in range(40)]


def parquet(**options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), buffer, **options)
    return buffer.getvalue()


def of_the_hub() -> bytes:
    buffer = io.BytesIO()
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"]), "n": List(Value("int32"))})
    table = Dataset.from_list([{"text": f"t {i}", "label": i % 2, "n": [i]} for i in range(40)], features=features)
    pq.write_table(table.data.table.replace_schema_metadata(features.arrow_schema.metadata), buffer)
    return buffer.getvalue()


FILES = {
    ".csv": b"text,label\n" + "".join('"{}",{}\n'.format(r["text"].replace('"', '""'), r["label"]) for r in ROWS).encode(),
    ".tab": b"text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in ROWS).encode(),
    ".jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode(),
    ".parquet": parquet(),
    ".parquet of version 2": parquet(data_page_version="2.0", use_dictionary=False, compression="zstd"),
    ".parquet of the hub": of_the_hub(),
}


@contextlib.contextmanager
def naming(path):
    """Fails for an error that does not name the file."""
    try:
        yield
    except DataError as error:
        if str(path) not in str(error):
            raise AssertionError("the file is not named") from error
        raise


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=150)
@given(
    cut=st.one_of(st.none(), st.floats(0, 1)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    at_the_end=st.booleans(),
)
def test_rows_or_one_error(tmp_path_factory, name, cut, changes, at_the_end):
    content = bytearray(FILES[name])
    begin = len(content) * 2 // 3 if at_the_end else 0  # where parquet says what is where
    for place, byte in changes:
        content[begin + int(place * (len(content) - begin))] = byte
    path = tmp_path_factory.getbasetemp() / f"damaged{name.split()[0]}"
    path.write_bytes(content if cut is None else content[: int(cut * len(content))])
    began = time.monotonic()
    for ask in (tables.count, lambda *asked: list(tables.read(*asked)), lambda p, c: inventory.text_bytes(p, c[0])):
        with contextlib.suppress(DataError), naming(path):
            ask(path, ["text", "label"])
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "said",
    [
        *(
            b"\xff",
            b"{",
            b"[]",
            b"3",
            b"null",
            b'{"info": []}',
            b'{"info": null}',
            b'{"info": {"features": [1]}}',
            b"[" * 100_000,
        ),
        *(
            json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", **more}}}}).encode()
            for more in ({}, {"names": None}, {"names": 3}, {"names": [1, 2]}, {"names": [["a"]]})
        ),
    ],
)
def test_metadata_that_is_absurd(tmp_path, said):
    table = pa.table({"text": ["a", "b"], "label": [0, 1]}).replace_schema_metadata({b"huggingface": said})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"expected the columns' classes in the metadata `huggingface` of .*train\.parquet"):
        list(tables.read(tmp_path / "train.parquet", ["text", "label"]))


@pytest.mark.parametrize("cells", [["no", "yes"], [0.0, 1.0], [["no"], ["yes"]]])
def test_classes_that_do_not_fit_their_column(tmp_path, cells):
    said = json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": ["no", "yes"]}}}})
    table = pa.table({"label": cells}).replace_schema_metadata({b"huggingface": said.encode()})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"expected the number of a class of \['no', 'yes'\].* in .*train\.parquet"):
        list(tables.read_as(tmp_path / "train.parquet", ["label"], str))
