"""Bytes of sparse matrices, each stored as a bitmap of its zeros and the values that are not zero."""

from collections.abc import Mapping
from typing import Any


def bitmap_bytes(weights: int, zeros: int, *, bits: int) -> float:
    """weights/8 + (weights - zeros)·bits/8: one bit for each weight, and the other values. bits: size of one value.

    A matrix without zeros has no bitmap. Raises ValueError unless 0 <= zeros <= weights.
    """
    if not 0 <= zeros <= weights:
        raise ValueError(f"need 0 <= zeros <= weights, got {zeros}, {weights}")
    return (weights if zeros else 0) / 8 + (weights - zeros) * bits / 8


def pattern_bytes(pattern: Mapping[str, Any], *, bits: int) -> float:
    """Sum of `bitmap_bytes` over the matrices of a sparsity pattern (bool tensors, True where the weight is zero)."""
    return sum(bitmap_bytes(zero.numel(), int(zero.sum()), bits=bits) for zero in pattern.values())
