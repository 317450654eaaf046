"""Scores of a task, with 95 % confidence intervals."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Scorer = Callable[[np.ndarray], float]  # indices of examples, with repetitions -> the metric of these examples

ACCURACY = "accuracy"  # the only metric that is a proportion of the examples


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion, in [0, 1].

    Raises ValueError unless 0 <= correct <= total and total > 0.
    Source: Wilson 1927; valid near 0 and 1 too, unlike the normal approximation.
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"need 0 <= correct <= total and total > 0, got {correct}, {total}")
    p, z = correct / total, 1.959964
    center = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)


def bootstrap_interval(scorer: Scorer, total: int, *, resamples: int, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of a metric over `total` examples, drawn `resamples` times with replacement.

    Source: Efron 1979; Efron & Tibshirani 1993, section 13.3.
    """
    draw = np.random.default_rng(seed)
    values = [scorer(draw.integers(total, size=total)) for _ in range(resamples)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def summary(scorers: Mapping[str, Scorer], primary: str, total: int, *, resamples: int, seed: int) -> dict[str, Any]:
    """Return the primary metric as `score` with its 95 % interval, and all metrics over all `total` examples as `metrics`.

    The interval is Wilson's for the accuracy, the bootstrap's for every other metric.
    """
    metrics = {name: scorer(np.arange(total)) for name, scorer in scorers.items()}
    if primary == ACCURACY:
        low, high = wilson_interval(round(metrics[primary] * total), total)
    else:
        low, high = bootstrap_interval(scorers[primary], total, resamples=resamples, seed=seed)
    score = {"metric": primary, "score": metrics[primary], "score_low": low, "score_high": high, "rows": total}
    return {**score, "metrics": metrics}
