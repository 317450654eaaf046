"""Scores of a task, with 95 % confidence intervals."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.stats import binomtest, bootstrap

Scorer = Callable[[np.ndarray], float]  # indices of examples, with repetitions -> the metric of these examples

ACCURACY = "accuracy"  # the only metric that is a proportion of the examples


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion, in [0, 1].

    Source: Wilson 1927; valid near 0 and 1 too, unlike the normal approximation.
    """
    low, high = binomtest(correct, total).proportion_ci(method="wilson")
    return float(low), float(high)


def bootstrap_interval(scorer: Scorer, total: int, *, resamples: int, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of a metric over `total` examples, drawn `resamples` times with replacement.

    One example alone has no spread: both ends are its own value.
    Source: Efron 1979; Efron & Tibshirani 1993, section 13.3.
    """
    examples = np.arange(total)
    if total == 1:
        return scorer(examples), scorer(examples)
    low, high = bootstrap(
        (examples,),
        scorer,
        n_resamples=resamples,
        batch=1,  # one draw in memory at a time
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
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
