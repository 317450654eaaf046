"""What `pruneonce inspect` prints, worked by hand."""

import dataclasses
import json

import pytest

from pruneonce.deployment import execution, layers, overview, packing
from pruneonce.deployment.execution import Matrix
from pruneonce.deployment.layers import Content, Layer

LONG = "encoder.layer.11.attention.output.dense"  # as long as names of BERT get
LINEARS = [
    Layer("a", "linear", 8, 4, 0.5, "unstructured", 8, 32, True),
    Layer(LONG, "linear", 3072, 768, 0.8999, "1x4", 8, 2359296, True),
    Layer("head", "linear", 2, 8, 0.0, "dense", 32, 64, False),
]
WORDS = Layer("words", "embedding", 1000, 4, 0.01, "-", 8, 4000, False)
MATRICES = [
    Matrix("a.weight", 8, 4, 0.5, 1.0, "stock", "12 cycles, stock 9"),
    Matrix(f"{LONG}.weight", 3072, 768, 0.8999, 0.344, "sparse", "15,847 cycles, stock 17,213"),
]
ABOUT = {
    "task": "r8",
    "variant": "int8",
    "kind": {"kind": "classification", "classes": ["acq", "earn"]},
    "score": {"metric": "accuracy", "split": "validation", "value": 0.97123},
    "sparsity": 0.85,
    "pattern": "1x4",
    "bits": 8,
    "max_tokens": 128,
}


@pytest.fixture
def inspected(monkeypatch, tmp_path):
    """(what the file holds, its matrices with a choice) -> the overview, on some processor."""
    monkeypatch.setattr(execution, "processor", lambda: "avx2")
    (tmp_path / "int8.packed").write_bytes(b"12345")

    def of(content: Content, matrices: list[Matrix]) -> overview.Overview:
        monkeypatch.setattr(execution, "matrices", lambda model, **how: matrices)
        monkeypatch.setattr(layers, "content", lambda model: content)
        return overview.of(b"7 bytes", tmp_path / "int8.packed", execution="auto", threads=2)

    return of


def test_each_matrix_has_a_line(inspected):
    about, labels, processor, *table, counted, looked_up, parameters, size = overview.lines(
        inspected(Content(ABOUT, [WORDS, *LINEARS], 2363448, 0), MATRICES)
    )
    assert about == ("r8; int8; accuracy 0.9712 on validation; sparsity 0.85; 1x4; 8 bits; at most 128 tokens")
    assert labels == "2 labels: acq, earn"
    assert processor == f"processor: avx2, 2 threads; library: {execution.LIBRARY}"
    assert table == [
        "matrix                                       size  zeros  pattern       bits      bytes   words  kernel  why",
        "a                                             8x4  50.0%  unstructured     8         32  100.0%  stock   "
        "12 cycles, stock 9",
        "encoder.layer.11.attention.output.dense  3072x768  90.0%  1x4              8  2,359,296   34.4%  sparse  "
        "15,847 cycles, stock 17,213",
        "head                                          2x8   0.0%  dense           32         64          stock   float",
    ]
    assert counted == "3 matrices: 2 stock, 1 sparse; cycles are those of all threads for one token"
    assert looked_up == "embeddings: 4,000 parameters of 8 bits, 4,000 bytes"
    zeros = (0.5 * 32 + 0.8999 * 3072 * 768) / (32 + 3072 * 768)
    assert parameters == f"2,363,448 parameters, {zeros:.2%} zeros in the prunable matrices"
    assert size == "7 bytes, 5 bytes packed"


def test_the_same_for_a_program(inspected):
    found = json.loads(json.dumps(overview.as_json(inspected(Content(ABOUT, [WORDS, *LINEARS], 2363448, 0), MATRICES))))
    assert found["about"] == ABOUT
    assert [layer["name"] for layer in found["layers"]] == ["a", LONG, "head", "words"]
    assert found["layers"][1] == {
        **dataclasses.asdict(LINEARS[1]),
        "words": 0.344,
        "kernel": "sparse",
        "why": "15,847 cycles, stock 17,213",
    }
    assert found["layers"][2]["words"] is None
    totals = found["totals"]
    assert (totals["bytes"], totals["packed_bytes"], totals["kernels"]) == (7, 5, {"stock": 2, "sparse": 1})
    assert totals["sparsity"] == pytest.approx(0.8999, abs=1e-5)


def test_a_file_in_float_has_no_column_for_words(inspected):
    _, _, header, row, counted, _, _ = overview.lines(inspected(Content(None, [LINEARS[2]], 16, 0), []))
    assert header == "matrix  size  zeros  pattern  bits  bytes  kernel  why"
    assert row == "head     2x8   0.0%  dense      32     64  stock   float"
    assert counted == "1 matrices: 1 stock"


def test_an_accelerated_file_is_called_so(inspected):
    said = list(overview.lines(inspected(Content(None, [LINEARS[2]], 16, 45), [])))
    assert said[-3] == "45 operators of the sparse kernels: `pruneonce accelerate` wrote this file"
    assert said[-2] == "16 parameters", "the zeros are in the operators' weights"


@pytest.mark.parametrize(
    "about", [{}, {"kind": 1, "score": [], "sparsity": "x", "bits": None}, {"task": "\x1b[1mx\ny", "kind": {"classes": "x"}}]
)
def test_odd_words_of_a_file_about_itself_stay_one_line(inspected, about):
    first, second, *_ = overview.lines(inspected(Content(about, [], 0, 0), []))
    assert "\x1b" not in first
    assert "\n" not in first
    assert second.startswith("processor: ")


@pytest.mark.parametrize(("size", "packed"), [(overview.QUICK, 3), (overview.QUICK + 1, None)])
def test_only_a_file_that_is_packed_quickly_is_packed_to_be_counted(inspected, monkeypatch, tmp_path, size, packed):
    inspected(Content(None, [], 0, 0), [])
    file = tmp_path / "model.onnx"
    with file.open("wb") as out:
        out.truncate(size)
    monkeypatch.setattr(packing, "packed_bytes", lambda path: 3)
    assert overview.of(file, file, execution="auto", threads=0).packed_bytes == packed
