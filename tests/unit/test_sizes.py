"""Bytes of a sparsity pattern, against numbers worked by hand."""

import pytest
import torch

from study import sizes


def test_bitmap_bytes_give_the_papers_compression():
    dense = sizes.bitmap_bytes(1000, 0, bits=32)
    assert dense == 4000
    assert sizes.bitmap_bytes(1000, 900, bits=32) == 125 + 400
    assert dense / sizes.bitmap_bytes(1000, 900, bits=8) == pytest.approx(17.8, abs=0.05)
    assert sizes.bitmap_bytes(8, 8, bits=8) == 1
    with pytest.raises(ValueError, match="zeros <= weights"):
        sizes.bitmap_bytes(8, 9, bits=8)


def test_pattern_bytes_add_up():
    pattern = {"a": torch.tensor([True] * 6 + [False] * 2), "b": torch.zeros(16, dtype=torch.bool)}
    assert sizes.pattern_bytes(pattern, bits=32) == (1 + 2 * 4) + 16 * 4
