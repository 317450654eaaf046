"""How good and how small: accuracy with its interval, and the fewest bytes that weights can take."""

import math

import numpy as np


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Confidence interval of a proportion (95 % for the default z), in [0, 1].

    Source: Wilson 1927; right also near 0 and 1, where the normal approximation is not.
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"need 0 <= correct <= total and total > 0, got {correct}, {total}")
    p = correct / total
    center = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)


def entropy_bytes(values: np.ndarray) -> float:
    """n · H / 8: fewer bytes no code of independent values can take. H: bits, -Σ p log2 p over the values that occur.

    For a sparse tensor that is its mask and its values apart: H = H(zero or not) + P(not zero) · H(value if not zero).
    Source: Shannon 1948, sections 6 (the decomposition of a choice) and 9.
    """
    _, counts = np.unique(values, return_counts=True)
    return float((counts * np.log2(values.size / counts)).sum() / 8)
