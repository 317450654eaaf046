"""How fast a step of student pruning and of distilled fine-tuning is, against a plain Trainer and the machine's peak.

One optimizer step is a student that learns and a teacher that answers. Its model FLOPs are those of `planning.step_flops`:
of the matrix products, with logits where a loss reads them. What was computed without need (dropout, logits that
nothing reads, recomputation) does not count. The peak is the best of several square torch.mm in the same run.

ours    this project's functions with the default profile's numbers: bf16 where the processor has it, no dropout
plain   benchmarks/plain.py: the same model, batch and masks in a `transformers.Trainer` script

Weights are random (the speed does not depend on them) unless --teacher names a folder; so are tokens, unless --tokens
and --splits do.
"""

import argparse
import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, median
from types import SimpleNamespace

import numpy as np
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from torch import nn
from torch.profiler import profile
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification
from transformers.utils import logging

from benchmarks import plain
from benchmarks.measuring import Compute, arguments, bar, in_turn, publish, ratio
from pruneonce.batch import IGNORED, Batch, Loss, mix
from pruneonce.engine import accelerator
from pruneonce.language import corpus, masked_lm
from pruneonce.models import checkpoint, step_costs
from pruneonce.sparsity import masks
from pruneonce.tasks import splits
from pruneonce.tasks.batches import Batches, collate
from pruneonce.tasks.classification import Classification
from pruneonce.training import loop, schedules, task

ROWS, LENGTH = 32, 128  # a batch of student pruning
CURVE_ROWS = 4  # of the curve: minutes instead of most of an hour
TASK_ROWS, WINDOW = 16, 32 * 16  # a batch of fine-tuning; texts measured: one window of tasks.Batches, so a whole epoch
SPARSITY, PRUNABLE = 0.85, r"^encoder\."
MEDIAN_TOKENS, LENGTH_SPREAD = 83, 0.7  # log-normal: like r8's texts
PAPER = {"hard_weight": 0.5, "soft_weight": 0.5, "hidden_weight": 0.0, "temperature": 2.0}
PROFILE = {"hard_weight": 0.1, "soft_weight": 0.0, "hidden_weight": 1.0, "temperature": 2.0}
KIND = Classification("accuracy", [f"class {i}" for i in range(8)])


def peak(dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several square matrix products."""
    best = 0.0
    for size in (2048, 3072, 4096):
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        for _ in range(4):
            began = time.perf_counter()
            torch.mm(a, b)
            best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def minilm(*, dropout: float = 0.0, attention: str = "eager", classes: int = 2) -> BertConfig:
    """The shape of MiniLM-L6."""
    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    config.num_labels, config._attn_implementation = classes, attention
    return config


def language_model(folder: Path | None, *, dropout: float, attention: str) -> nn.Module:
    """The masked LM of the folder, or MiniLM-L6's shape with random weights."""
    if folder:
        return checkpoint.load_masked_lm(folder, attention=attention, dropout=dropout)
    torch.manual_seed(0)
    return BertForMaskedLM(minilm(dropout=dropout, attention=attention))


def classifier(*, dropout: float, attention: str) -> nn.Module:
    """The same body with eight classes on it."""
    torch.manual_seed(0)
    return BertForSequenceClassification(minilm(dropout=dropout, attention=attention, classes=8))


def masked_batches(folder: Path | None, *, seed: int = 0, rows: int = ROWS) -> Callable[[int], Batch]:
    """Blocks masked as in the stages: of the folder's train.arrow, or of random tokens."""
    if folder:
        marks = SimpleNamespace(mask_token_id=103, all_special_ids=[0, 100, 101, 102, 103])
        words = type("Vocabulary", (SimpleNamespace,), {"__len__": lambda self: 30522})(**vars(marks))
        return corpus.MaskedBlocks(
            corpus.read_blocks(folder / "train.arrow"), words, batch_size=rows, probability=0.15, seed=seed
        )

    return lambda step: random_blocks(rows, LENGTH, seed=mix(seed, step))


def random_blocks(rows: int, length: int, *, seed: int) -> Batch:
    """A masked batch of random tokens without padding."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1000, 30522, (rows, length), generator=draw)
    inputs, labels = corpus.mask_tokens(
        tokens, probability=0.15, mask_token=103, vocabulary=30522, special=[0], generator=draw
    )
    return {"input_ids": inputs, "labels": labels, "attention_mask": torch.ones_like(inputs)}


def texts(folder: Path | None) -> Dataset:
    """WINDOW tokenised texts with labels, a split as tasks.Batches reads it."""
    draw = np.random.default_rng(0)
    if folder:
        split = splits.read_split(folder / "train.arrow")
        chosen = draw.permutation(len(split))[:WINDOW]
        rows = split[chosen]
        return Dataset.from_dict({"input_ids": [r[:LENGTH] for r in rows["input_ids"]], "label": rows["label"]})
    lengths = np.clip(np.exp(draw.normal(np.log(MEDIAN_TOKENS), LENGTH_SPREAD, WINDOW)).astype(int), 4, LENGTH)
    ids = [[101, *draw.integers(1000, 30522, n - 2).tolist(), 102] for n in lengths]
    return Dataset.from_dict({"input_ids": ids, "label": draw.integers(0, 8, WINDOW).tolist()})


class Watch:
    """A `training.Log` that keeps losses and the time each step ended."""

    def __init__(self) -> None:
        self.ends, self.losses = list[float](), list[float]()

    def __call__(self, step: int, metrics) -> None:
        self.ends.append(time.perf_counter())
        self.losses.append(metrics["loss"])


def fit(student: nn.Module, batches, loss: Loss, *, steps: int, compute: Compute, pruned: Callable) -> Watch:
    """Our training loop on a fresh copy of the student; `pruned(model)` sets its masks."""
    AcceleratorState._reset_state()  # it is one a process, and the other sides compute in another precision
    engine = accelerator(compute)
    student, watch = copy.deepcopy(student), Watch()
    masks.mask_linears(student, PRUNABLE)
    pruned(student)
    rate = partial(schedules.linear_decay, steps=steps, warmup=max(1, steps // 10), peak=1e-3)
    settings = {"weight_decay": 0.01, "clip_norm": 1.0, "seed": compute.seed, "name": compute.precision}
    loop.fit(student, batches, loss, engine=engine, learning_rate=rate, steps=steps, log=watch, **settings)  # type: ignore[arg-type]
    return watch


def seconds(watch: Watch) -> float:
    """What all steps but the first took, which allocates."""
    return watch.ends[-1] - watch.ends[0]


def at_target(model: nn.Module) -> None:
    masks.prune(model, SPARSITY)


def plain_masks(student: nn.Module) -> dict:
    """Weight -> mask, as a script keeps them."""
    return {m.weight: masks.magnitude_mask(m.weight, SPARSITY) for m in masks.prunable(student, PRUNABLE).values()}


def mlm_rates(args: argparse.Namespace) -> tuple[dict[str, list[float]], float]:
    """tokens/s of each side by round, and the share of positions that are masked."""
    batches, compute = masked_batches(args.tokens), Compute(threads=args.threads)
    mentor = language_model(args.teacher, dropout=0.0, attention="eager").eval().requires_grad_(False)
    student = language_model(args.teacher, dropout=0.0, attention="eager")

    def ours(weights: dict[str, float], everywhere: bool, steps: int) -> float:
        loss = masked_lm.distilled_loss(mentor, **weights, everywhere=everywhere)
        watch = fit(student, batches, loss, steps=steps + 1, compute=compute, pruned=at_target)
        return steps * ROWS * LENGTH / seconds(watch)

    def theirs(steps: int) -> float:
        model = language_model(args.teacher, dropout=0.1, attention="sdpa")
        teacher = language_model(args.teacher, dropout=0.0, attention="sdpa").eval().requires_grad_(False)
        took = plain.train(model, teacher, [batches(s) for s in range(steps + 1)], masks=plain_masks(model))
        return steps * ROWS * LENGTH / took

    sides = {
        "ours, default profile": lambda: ours(PROFILE, False, args.steps),
        "ours, the paper's loss, masked positions": lambda: ours(PAPER, False, args.steps),
        "ours, the paper's loss, all positions": lambda: ours(PAPER, True, max(1, args.steps // 2)),
        "plain Trainer": lambda: theirs(max(1, args.steps // 4)),
    }
    if args.only_ours:
        sides = {name: side for name, side in sides.items() if name == "ours, default profile"}
    masked = mean(float((batches(s)["labels"] != IGNORED).float().mean()) for s in range(5))
    return in_turn(sides, args.rounds), masked


def student_pruning(args: argparse.Namespace) -> None:
    bf16, fp32 = peak(torch.bfloat16), peak(torch.float32)
    rates, masked = mlm_rates(args)
    bf16, fp32 = max(bf16, peak(torch.bfloat16)), max(fp32, peak(torch.float32))
    model, tokens = step_costs.build(minilm().to_dict()), ROWS * LENGTH
    forward = step_costs.forward_flops(model, rows=ROWS, length=LENGTH)
    read = {"ours, default profile": (masked, 0.0), "ours, the paper's loss, masked positions": (masked, masked)}
    rows = []
    for name, found in rates.items():
        ours, theirs = (share * tokens for share in read.get(name, (1.0, 1.0)))
        flops = step_costs.step_flops(forward, read=ours, teacher_read=theirs)
        speed = flops / tokens * median(found)
        times = ratio(found, rates["plain Trainer"]) if "plain Trainer" in rates else float("nan")
        reached = bar(">= 4 x", met=times >= 4), bar(">= 45 %", met=speed >= 0.45 * bf16)
        rows.append(
            {
                "student pruning": name,
                "tokens/s": median(found),
                "lowest": min(found),
                "highest": max(found),
                "times plain": times,
                "model GFLOP/s": speed / 1e9,
                "% of bf16 peak": 100 * speed / bf16,
                "bars": "; ".join(reached) if name.startswith("ours") else "",
            }
        )
    source = "given" if args.teacher else "random"
    note = (
        f"MiniLM-L6, {source} weights, batch {ROWS} x {LENGTH}, {args.rounds} rounds in turn. "
        f"Peak: {bf16 / 1e9:.0f} GFLOP/s bf16, {fp32 / 1e9:.0f} GFLOP/s fp32. All positions are what plain computes too: "
        f"4 times plain is {100 * 4 * speed / bf16:.0f} % of the peak there. The other losses need fewer products."
    )
    publish("Student pruning", rows, note, file=args.json)


def fine_tuning(args: argparse.Namespace) -> None:
    """Texts a second: ours batches texts of similar length, plain pads every text to LENGTH."""
    split, compute = texts(args.splits), Compute(threads=args.threads)
    marks = SimpleNamespace(pad_token_id=0, sep_token_id=102)
    batches = Batches(split, KIND, marks, batch_size=TASK_ROWS, max_tokens=LENGTH, seed=1)
    mentor = classifier(dropout=0.0, attention="eager").eval().requires_grad_(False)
    student = classifier(dropout=0.0, attention="eager")
    masks.mask_linears(student, PRUNABLE)
    at_target(student)
    masks.bake(student)
    loss = task.distilled_loss(KIND, mentor, temperature=2.0, soft_ratio=1.0, hidden_weight=0.0)

    def ours() -> float:
        watch = fit(student, batches, loss, steps=len(batches) + 1, compute=compute, pruned=masks.lock)
        return WINDOW / seconds(watch)

    def padded(step: int) -> Batch:
        rows = range(step * TASK_ROWS, (step + 1) * TASK_ROWS)
        chosen = [split[row] for row in rows]
        chosen = [*chosen, {"input_ids": [0] * LENGTH, "label": 0}]  # the last row makes the batch LENGTH long
        batch = collate(chosen, KIND, pad=0, max_tokens=LENGTH, last=102)
        return {key: value[:TASK_ROWS] for key, value in batch.items()}

    def theirs(steps: int = 4) -> float:
        model = classifier(dropout=0.1, attention="sdpa")
        teacher = classifier(dropout=0.0, attention="sdpa").eval().requires_grad_(False)
        took = plain.train(model, teacher, [padded(s) for s in range(steps + 1)], masks=plain_masks(model))
        return steps * TASK_ROWS / took

    rates = in_turn({"ours": ours, "plain Trainer": theirs}, args.rounds)
    lengths = [len(ids) for ids in split["input_ids"]]
    rows = [
        {
            "distilled fine-tuning": name,
            "texts/s": median(found),
            "lowest": min(found),
            "highest": max(found),
            "times plain": ratio(found, rates["plain Trainer"]),
            "bar": bar(">= 3 x", met=ratio(found, rates["plain Trainer"]) >= 3) if name == "ours" else "",
        }
        for name, found in rates.items()
    ]
    source = "r8's token lengths" if args.splits else f"log-normal token lengths, median {MEDIAN_TOKENS} before the cut"
    note = f"Batch {TASK_ROWS}, cut at {LENGTH} tokens, {source}: median {median(lengths):.0f}, mean {mean(lengths):.0f}."
    publish("Distilled fine-tuning", rows, note, file=args.json)


def operators(args: argparse.Namespace) -> None:
    """The twelve operators with the most CPU time of their own in two steps of ours."""
    batches, mentor = masked_batches(args.tokens), language_model(args.teacher, dropout=0.0, attention="eager")
    loss = masked_lm.distilled_loss(mentor.eval().requires_grad_(False), **PROFILE, everywhere=False)
    student = language_model(args.teacher, dropout=0.0, attention="eager")
    compute = Compute(threads=args.threads)
    fit(student, batches, loss, steps=2, compute=compute, pruned=at_target)
    with profile() as recorded:
        fit(student, batches, loss, steps=2, compute=compute, pruned=at_target)
    events = sorted(recorded.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    rows = [
        {
            "operator": event.key,
            "calls": event.count,
            "self ms": event.self_cpu_time_total / 1e3,
            "%": 100 * event.self_cpu_time_total / total,
        }
        for event in events[:12]
    ]
    publish("Where two steps of student pruning go", rows, file=args.json)


def curve(args: argparse.Namespace, *, seeds: int = 3) -> None:
    """Loss in bf16 and fp32 on three seeds, the same batches and start in both; small batches, which are the noisier."""
    mentor = language_model(args.teacher, dropout=0.0, attention="eager").eval().requires_grad_(False)
    student = language_model(args.teacher, dropout=0.0, attention="eager")
    loss = masked_lm.distilled_loss(mentor, **PROFILE, everywhere=False)
    found: dict[str, list[list[float]]] = {"bf16": [], "fp32": []}
    for seed in range(1, seeds + 1):
        for precision, losses in found.items():
            compute = Compute(seed=seed, precision=precision, threads=args.threads)
            batches = masked_batches(args.tokens, seed=seed, rows=CURVE_ROWS)
            losses.append(fit(student, batches, loss, steps=args.curve_steps, compute=compute, pruned=at_target).losses)
    rows, note = same_curve(np.array(found["bf16"]), np.array(found["fp32"]))
    publish(f"Loss in bf16 and fp32, default profile's, batch {CURVE_ROWS} x {LENGTH}", rows, note, file=args.json)


def same_curve(bf16: np.ndarray, fp32: np.ndarray, *, window: int = 20) -> tuple[list[dict], str]:
    """Is the difference of precisions within that of seeds, in every window of steps? Losses: float[seeds, steps]."""
    rows, window = list[dict](), min(window, bf16.shape[1])
    for start in range(0, bf16.shape[1] - window + 1, window):
        ours, theirs = (losses[:, start : start + window].mean(1) for losses in (bf16, fp32))
        difference, spread = abs(ours.mean() - theirs.mean()), np.ptp(theirs)
        rows.append(
            {
                "steps": f"{start}-{start + window - 1}",
                **{f"bf16 {seed}": f"{value:.4f}" for seed, value in enumerate(ours, 1)},
                **{f"fp32 {seed}": f"{value:.4f}" for seed, value in enumerate(theirs, 1)},
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


def processes(args: argparse.Namespace) -> None:
    """The same global batch on one and on two processes, one thread each."""
    rates = {}
    for count in (1, 2):
        words = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "-m", "benchmarks.train"]
        words += ["--only-ours", "--threads", "1", "--rounds", str(args.rounds), "--steps", str(args.steps)]
        done = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("tokens/s ")]
        rates[count] = float(line.split()[1])
    rows = [{"processes": n, "tokens/s": r, "times one": r / rates[1]} for n, r in rates.items()]
    publish("Processes of one thread each", rows, file=args.json)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "pruning": student_pruning,
    "fine-tuning": fine_tuning,
    "operators": operators,
    "processes": processes,
    "curve": curve,
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all of them")
    parser.add_argument("--teacher", type=Path, help="a masked LM of MiniLM-L6's shape; default: random weights")
    parser.add_argument("--tokens", type=Path, help="data/prepare_corpus/tokens; default: random tokens")
    parser.add_argument("--splits", type=Path, help="data/tasks/r8, for its lengths; default: log-normal lengths")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="of ours a round")
    parser.add_argument("--curve-steps", type=int, default=200, help="of each run of the curve")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only-ours", action="store_true", help="print tokens/s of the default profile's step, no more")
    args = parser.parse_args()
    logging.set_verbosity_error()
    if args.only_ours:
        rates, _ = mlm_rates(args)
        if os.environ.get("RANK", "0") == "0":
            print("tokens/s", median(rates["ours, default profile"]))
        return
    for part in args.parts:
        PARTS[part](args)


if __name__ == "__main__":
    main()
