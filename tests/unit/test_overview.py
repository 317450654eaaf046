"""What `pruneonce inspect` prints, worked by hand."""

from pathlib import Path

import pytest

from pruneonce.deployment import execution, overview
from pruneonce.deployment.execution import Matrix

LONG = "encoder.layer.11.attention.output.dense.weight"  # as long as names of BERT get
MATRICES = [
    Matrix("a.weight", 8, 4, 0.5, 1.0, "stock", "12 cycles, stock 9"),
    Matrix(LONG, 3072, 768, 0.8999, 0.344, "sparse", "15,847 cycles, stock 17,213"),
    Matrix("b.weight", 8, 4, 0.999, 0.01, "sparse", "1 cycles, stock 9"),
]


@pytest.fixture
def printed(monkeypatch):
    """matrices -> the lines, on some processor."""
    monkeypatch.setattr(execution, "processor", lambda: "avx2")

    def lines(*matrices: Matrix) -> list[str]:
        monkeypatch.setattr(execution, "matrices", lambda model, **how: list(matrices))
        return list(overview.lines(b"", Path("int8.packed"), execution="auto", threads=2))

    return lines


def test_each_matrix_has_a_line_of_less_than_100_columns(printed):
    first, *table, last = printed(*MATRICES)
    assert first == f"processor: avx2, 2 threads; library: {execution.LIBRARY}"
    assert table == [
        "matrix                                       size  zeros   words  kernel  why",
        "a                                             8x4  50.0%  100.0%  stock   12 cycles, stock 9",
        "encoder.layer.11.attention.output.dense  3072x768  90.0%   34.4%  sparse  15,847 cycles, stock 17,213",
        "b                                             8x4  99.9%    1.0%  sparse  1 cycles, stock 9",
    ]
    assert last == "3 matrices: 2 sparse, 1 stock; cycles are those of all threads for one token"
    assert max(map(len, table)) <= 101


def test_one_reason_for_all_is_said_once(printed):
    _, header, *rows, last = printed(*[Matrix(name, 8, 4, 0.5, 1.0, "stock", "as asked for") for name in ("a", "bc")])
    assert header == "matrix  size  zeros   words  kernel"
    assert rows == ["a        8x4  50.0%  100.0%  stock", "bc       8x4  50.0%  100.0%  stock"]
    assert last == "2 matrices: 2 stock, as asked for"
