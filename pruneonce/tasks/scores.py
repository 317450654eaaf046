"""How good and how small: what a task measures, with its interval, and the fewest bytes that weights can take."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Scorer = Callable[[np.ndarray], float]  # indices of examples, with repetitions -> the metric of just these

ACCURACY = "accuracy"  # by that name: the share of examples that are right, a proportion


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


def bootstrap_interval(scorer: Scorer, total: int, *, resamples: int, seed: int) -> tuple[float, float]:
    """Percentile interval (95 %) of a metric over `total` examples, drawn `resamples` times with replacement.

    Source: Efron 1979; Efron & Tibshirani 1993, section 13.3.
    """
    draw = np.random.default_rng(seed)
    found = [scorer(draw.integers(total, size=total)) for _ in range(resamples)]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def summary(scorers: Mapping[str, Scorer], primary: str, total: int, *, resamples: int, seed: int) -> dict[str, Any]:
    """Every metric over all `total` examples by its name: `metrics`; the primary one as `score`, with its 95 % interval.

    The interval of the accuracy is Wilson's, of every other metric the bootstrap's.
    """
    found = {name: scorer(np.arange(total)) for name, scorer in scorers.items()}
    if primary == ACCURACY:
        low, high = wilson_interval(round(found[primary] * total), total)
    else:
        low, high = bootstrap_interval(scorers[primary], total, resamples=resamples, seed=seed)
    score = {"metric": primary, "score": found[primary], "score_low": low, "score_high": high, "rows": total}
    return {**score, "metrics": found}


def entropy_bytes(values: np.ndarray) -> float:
    """n · H / 8: fewer bytes no code of independent values can take. H: bits, -Σ p log2 p over the values that occur.

    For a sparse tensor that is its mask and its values apart: H = H(zero or not) + P(not zero) · H(value if not zero).
    Source: Shannon 1948, sections 6 (the decomposition of a choice) and 9.
    """
    _, counts = np.unique(values, return_counts=True)
    return float((counts * np.log2(values.size / counts)).sum() / 8)
