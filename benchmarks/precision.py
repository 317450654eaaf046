"""The loss of student pruning in bf16 and in fp32, on the same seeds, batches and start."""

import argparse

import numpy as np

from benchmarks import batches, models
from benchmarks.measuring import Compute, publish
from benchmarks.trained import PROFILE, fit
from pruneonce.language import masked_lm

ROWS = 4  # of a batch; a small one is noisier, and takes minutes instead of most of an hour
SEEDS = (1, 2, 3)
WINDOW_STEPS = 20


def curve(args: argparse.Namespace) -> None:
    """Print the mean losses of every window of steps, in both precisions on every seed."""
    teacher = models.teacher(models.language_model(args.teacher, dropout=0.0, attention="eager"))
    student = models.language_model(args.teacher, dropout=0.0, attention="eager")
    loss = masked_lm.distilled_loss(teacher, PROFILE, soft_positions=masked_lm.masked_tokens)
    losses: dict[str, list[list[float]]] = {"bf16": [], "fp32": []}
    for seed in SEEDS:
        for precision, runs in losses.items():
            compute = Compute(seed=seed, precision=precision, threads=args.threads)
            read = batches.masked(args.tokens, seed=seed, rows=ROWS)
            runs.append(fit(student, read, loss, steps=args.curve_steps, compute=compute, prune=models.prune).losses)
    rows, note = compare(np.array(losses["bf16"]), np.array(losses["fp32"]))
    publish(f"Loss in bf16 and fp32, default profile's, batch {ROWS} x {batches.LENGTH}", rows, note, file=args.json)


def compare(bf16: np.ndarray, fp32: np.ndarray) -> tuple[list[dict], str]:
    """A row for each window of steps, and whether the precisions differ by less than fp32's seeds. float[seeds, steps]."""
    rows, window = list[dict](), min(WINDOW_STEPS, bf16.shape[1])
    for start in range(0, bf16.shape[1] - window + 1, window):
        low, full = (losses[:, start : start + window].mean(1) for losses in (bf16, fp32))
        difference, spread = abs(low.mean() - full.mean()), np.ptp(full)
        rows.append(
            {
                "steps": f"{start}-{start + window - 1}",
                **{f"bf16 {seed}": f"{value:.4f}" for seed, value in enumerate(low, 1)},
                **{f"fp32 {seed}": f"{value:.4f}" for seed, value in enumerate(full, 1)},
                "difference of means": f"{difference:.5f}",
                "spread of fp32": f"{spread:.5f}",
                "within": "yes" if difference <= spread else "no",
            }
        )
    within = [row["within"] for row in rows].count("yes")
    return rows, (
        f"bf16 {'is' if within == len(rows) else 'IS NOT'} within noise: the difference of the means is at most the spread "
        f"over fp32's seeds (largest - smallest) in {within} of {len(rows)} windows. "
        f"Largest difference of a step at the same seed: {np.abs(bf16 - fp32).max():.5f}."
    )
