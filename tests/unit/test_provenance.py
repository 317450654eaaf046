"""What a file says of itself: read without onnx, the same bytes for the same words; patterns found from zeros."""

import hashlib
import json

import numpy as np
import onnx
import pytest

from pruneonce.deployment import about, packing, provenance, runtime
from pruneonce.errors import PackError

SAID = {"task": "topic", "kind": {"kind": "classification", "classes": ["é", "b"]}, "deps": {"data/x": "1" * 32}}
TOKENIZER = json.dumps({"model": {"vocab": {"ß": 0, "水": 1}}}, ensure_ascii=False)


@pytest.fixture
def file(int8_onnx, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(int8_onnx.path.read_bytes())
    provenance.write(path, SAID, TOKENIZER)
    return path


def test_a_file_and_its_packed_form_say_the_same(file, int8_onnx, tmp_path):
    packing.pack(file, tmp_path / "model.packed")
    before = {p.key: p.value for p in onnx.load(int8_onnx.path).metadata_props}
    for source in (file, tmp_path / "model.packed", file.read_bytes()):
        said = about.about(source)
        assert said == {**SAID, "format": 1, "tokenizer": {"sha256": hashlib.sha256(TOKENIZER.encode()).hexdigest()}}
        found = about.entries(source)
        assert found[provenance.TOKENIZER] == TOKENIZER
        assert {key: found[key] for key in before} == before
        assert len(before) >= 1
    assert about.entries(file) == {p.key: p.value for p in onnx.load(file).metadata_props}
    assert about.entries(file) == runtime.session(file, threads=1).get_modelmeta().custom_metadata_map


def test_the_same_words_are_the_same_bytes(file, int8_onnx, tmp_path):
    again = tmp_path / "again.onnx"
    again.write_bytes(int8_onnx.path.read_bytes())
    provenance.write(again, dict(reversed(SAID.items())), TOKENIZER)
    assert again.read_bytes() == file.read_bytes()
    provenance.write(again, SAID, TOKENIZER)
    assert again.read_bytes() == file.read_bytes(), "written twice"


def test_a_tokenizer_without_a_file_is_left_out(int8_onnx, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(int8_onnx.path.read_bytes())
    provenance.write(path, SAID, None)
    assert about.about(path)["tokenizer"] is None
    assert provenance.TOKENIZER not in about.entries(path)


def test_a_file_that_says_nothing(int8_onnx):
    assert about.about(int8_onnx.path) == {}


@pytest.mark.parametrize(
    ("written", "found"),
    [
        *(("{", "Expecting property name"), ("[]", "found list"), ("{}", "found None"), ('{"format": 2}', "found 2")),
        ("[" * 100_000, "maximum recursion depth"),
    ],
)
def test_what_says_something_else(written, found):
    with pytest.raises(PackError, match=r"pruneonce\.about of m\.onnx") as caught:
        about.parse(written, "m.onnx")
    assert found in str(caught.value)


def test_metadata_that_is_no_text(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x3a\x00" + b"\x72\x06\x0a\x01k\x12\x01\xff")  # an empty graph, an entry k of byte 255
    with pytest.raises(PackError, match="expected text in the metadata"):
        about.entries(path)


def rolled(row: list[int]) -> np.ndarray:
    """A square: every row is the one before it, moved by a place."""
    return np.array([np.roll(row, i) for i in range(len(row))], bool)


def sparse(keep: np.ndarray) -> np.ndarray:
    return np.where(keep, 1.5, 0.0)


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        ("dense", np.ones((8, 8), bool)),
        ("1x4", np.kron([[1, 0], [0, 1]] * 4, np.ones((1, 4))).astype(bool)),
        ("4x1", np.kron([[1, 0] * 4, [0, 1] * 4], np.ones((4, 1))).astype(bool)),
        ("2:4", rolled([1, 0, 0, 1] * 2)),
        ("4:8", rolled([1, 1, 1, 0, 0, 0, 1, 0])),
        ("unstructured", rolled([1, 1, 1, 1, 1, 0, 0, 0])),
        ("unstructured", rolled([1, 1, 1, 0, 1])),
    ],
)
def test_a_pattern_is_found_from_zeros(name, keep):
    assert provenance.pattern([sparse(keep)]) == name
    assert provenance.pattern(iter([sparse(keep), sparse(keep)])) == name


def test_one_matrix_that_breaks_it_breaks_it():
    blocks = sparse(np.kron([[1, 0], [0, 1]] * 4, np.ones((1, 4))).astype(bool))
    broken = blocks.copy()
    broken[0, 1] = 0
    broken[0, 5:7] = 1
    assert provenance.pattern([blocks, broken]) == "unstructured"
