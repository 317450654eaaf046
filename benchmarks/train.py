"""Speed of a step of student pruning and of distilled fine-tuning, against a plain Trainer and the machine's peak.

One optimizer step trains a student and runs a teacher forward. Its FLOPs are those of `step_costs.step_flops`: of the
matrix products, with logits where a loss reads them. What is computed without need does not count: dropout, logits that
nothing reads, recomputation. The peak is the best of several square torch.mm in the same run.

ours    the library's functions with the default profile's numbers: bf16 where the processor has it, no dropout
plain   benchmarks/plain.py: the same model, batch and masks in a `transformers.Trainer` script

Weights are random (the speed does not depend on them) unless --teacher names a folder. So are tokens, unless --tokens
and --splits do.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from types import SimpleNamespace

import torch
from datasets import Dataset
from torch import nn
from torch.profiler import profile
from transformers.utils import logging

from benchmarks import batches, models, plain, precision
from benchmarks.batches import LENGTH, MEDIAN_TOKENS
from benchmarks.measuring import Compute, Row, arguments, bar, in_turn, publish, ratio
from benchmarks.models import PRUNABLE, SPARSITY
from benchmarks.trained import PAPER, PROFILE, SOFT, fit
from pipeline.params.sections import Distillation
from pruneonce import step_costs
from pruneonce.batch import IGNORED, Batch
from pruneonce.language import masked_lm
from pruneonce.sparsity import masks
from pruneonce.tasks.batches import Batches, collate
from pruneonce.tasks.classification import Classification
from pruneonce.training import task

ROWS = 32  # a batch of student pruning
TASK_ROWS, WINDOW = 16, 32 * 16  # a batch of fine-tuning; texts measured: one window of tasks.Batches, so a whole epoch
PLAIN_STEPS = 4  # of the plain Trainer in a round of fine-tuning
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


def plain_seconds(model: Callable[..., nn.Module], data: list[Batch]) -> float:
    """Time of a plain Trainer on these batches but the first. model: makes the student and the teacher."""
    student, teacher = model(dropout=0.1, attention="sdpa"), models.teacher(model(dropout=0.0, attention="sdpa"))
    linears = masks.prunable(student, PRUNABLE).values()
    weight_masks = {linear.weight: masks.magnitude_mask(linear.weight, SPARSITY) for linear in linears}
    return plain.train(student, teacher, data, masks=weight_masks)


def mlm_rates(args: argparse.Namespace) -> tuple[dict[str, list[float]], float]:
    """tokens/s of each side by round, and the share of positions that are masked."""
    model, read = partial(models.language_model, args.teacher), batches.masked(args.tokens, rows=ROWS)
    student, teacher = model(dropout=0.0, attention="eager"), models.teacher(model(dropout=0.0, attention="eager"))
    compute = Compute(threads=args.threads)

    def ours(distillation: Distillation, soft_positions: str, steps: int) -> float:
        positions = masked_lm.SOFT_POSITIONS[soft_positions]
        loss = masked_lm.distilled_loss(teacher, distillation, soft_positions=positions)
        watch = fit(student, read, loss, steps=steps + 1, compute=compute, prune=models.prune)
        return steps * ROWS * LENGTH / watch.seconds

    def trainer(steps: int) -> float:
        return steps * ROWS * LENGTH / plain_seconds(model, [read(step) for step in range(steps + 1)])

    sides = {
        "ours, default profile": lambda: ours(PROFILE, "masked", args.steps),
        "ours, the paper's loss, masked positions": lambda: ours(PAPER, "masked", args.steps),
        "ours, the paper's loss, all positions": lambda: ours(PAPER, "all", max(1, args.steps // 2)),
        "plain Trainer": lambda: trainer(max(1, args.steps // 4)),
    }
    if args.only_ours:
        sides = {name: side for name, side in sides.items() if name == "ours, default profile"}
    masked = mean(float((read(step)["labels"] != IGNORED).float().mean()) for step in range(5))
    return in_turn(sides, args.rounds), masked


def student_pruning(args: argparse.Namespace) -> None:
    """Print tokens/s of each side, and its share of the machine's peak."""
    bf16, fp32 = peak(torch.bfloat16), peak(torch.float32)
    rates, masked = mlm_rates(args)
    bf16, fp32 = max(bf16, peak(torch.bfloat16)), max(fp32, peak(torch.float32))
    model = step_costs.build(models.config("MiniLM-L6", dropout=0.0, attention="eager").to_dict())
    tokens = ROWS * LENGTH
    forward = step_costs.forward_flops(model, rows=ROWS, length=LENGTH)
    read = {"ours, default profile": (masked, 0.0), "ours, the paper's loss, masked positions": (masked, masked)}
    rows = []
    for name, found in rates.items():
        student, teacher = (share * tokens for share in read.get(name, (1.0, 1.0)))
        speed = step_costs.step_flops(forward, read=student, teacher_read=teacher) / tokens * median(found)
        times = ratio(found, rates["plain Trainer"]) if "plain Trainer" in rates else float("nan")
        reached = bar(">= 4 x", met=times >= 4), bar(">= 45 %", met=speed >= 0.45 * bf16)
        rows.append(
            {
                **speeds("student pruning", name, "tokens/s", rates),
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


def speeds(title: str, name: str, unit: str, rates: Mapping[str, Sequence[float]]) -> Row:
    """The columns of a side that both trainings have. rates: by side and round."""
    found = rates[name]
    times = ratio(found, rates["plain Trainer"]) if "plain Trainer" in rates else float("nan")
    return {title: name, unit: median(found), "lowest": min(found), "highest": max(found), "times plain": times}


def padded(split: Dataset, step: int) -> Batch:
    """The step's texts in the order of the split, all of LENGTH tokens."""
    rows = [split[row] for row in range(step * TASK_ROWS, (step + 1) * TASK_ROWS)]
    longest = {"input_ids": [0] * LENGTH, "label": 0}  # makes the batch LENGTH long, and is cut off again
    batch = collate([*rows, longest], KIND, pad=0, max_tokens=LENGTH, last=102)
    return {key: value[:TASK_ROWS] for key, value in batch.items()}


def fine_tuning(args: argparse.Namespace) -> None:
    """Print texts/s: ours batches texts of similar length, plain pads every text to LENGTH."""
    split, compute = batches.texts(args.splits, count=WINDOW), Compute(threads=args.threads)
    marks = SimpleNamespace(pad_token_id=0, sep_token_id=102)
    read = Batches(split, KIND, marks, batch_size=TASK_ROWS, max_tokens=LENGTH, seed=1)
    student = models.classifier(dropout=0.0, attention="eager")
    masks.mask_linears(student, PRUNABLE)
    models.prune(student)
    masks.bake(student)
    teacher = models.teacher(models.classifier(dropout=0.0, attention="eager"))
    loss = task.distilled_loss(KIND, teacher, SOFT)

    def ours() -> float:
        return WINDOW / fit(student, read, loss, steps=len(read) + 1, compute=compute, prune=masks.lock).seconds

    def trainer() -> float:
        data = [padded(split, step) for step in range(PLAIN_STEPS + 1)]
        return PLAIN_STEPS * TASK_ROWS / plain_seconds(models.classifier, data)

    rates = in_turn({"ours": ours, "plain Trainer": trainer}, args.rounds)
    rows = [speeds("distilled fine-tuning", name, "texts/s", rates) for name in rates]
    times = rows[0]["times plain"]
    rows = [{**rows[0], "bar": bar(">= 3 x", met=times >= 3)}, {**rows[1], "bar": ""}]
    lengths = [len(ids) for ids in split["input_ids"]]
    source = "r8's token lengths" if args.splits else f"log-normal token lengths, median {MEDIAN_TOKENS} before the cut"
    note = f"Batch {TASK_ROWS}, cut at {LENGTH} tokens, {source}: median {median(lengths):.0f}, mean {mean(lengths):.0f}."
    publish("Distilled fine-tuning", rows, note, file=args.json)


def operators(args: argparse.Namespace) -> None:
    """Print the twelve operators with the most CPU time of their own, in two steps of student pruning."""
    model, read = partial(models.language_model, args.teacher), batches.masked(args.tokens, rows=ROWS)
    teacher = models.teacher(model(dropout=0.0, attention="eager"))
    loss = masked_lm.distilled_loss(teacher, PROFILE, soft_positions=masked_lm.masked_tokens)
    student, compute = model(dropout=0.0, attention="eager"), Compute(threads=args.threads)
    train = partial(fit, student, read, loss, steps=2, compute=compute, prune=models.prune)
    train()
    with profile() as recorded:
        train()
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


def processes(args: argparse.Namespace) -> None:
    """Print tokens/s of the same global batch on one and on two processes, one thread each."""
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
    "curve": precision.curve,
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
