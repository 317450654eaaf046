"""Peak memory of two optimizer steps of student pruning on BERT-Base, beside what `step_costs.memory` computes.

Measured: the highest resident memory of a process that trains, less what it had before the models were built. Every
row is a process of its own, on the CPU, in bf16 where the processor has it.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
from transformers import BertConfig, BertForMaskedLM

from benchmarks import batches, models
from benchmarks.measuring import Compute, Row, arguments, bar, publish
from benchmarks.trained import PROFILE, train
from pruneonce import step_costs
from pruneonce.batch import IGNORED
from pruneonce.engine import cpu_has_bf16
from pruneonce.language import masked_lm
from pruneonce.sparsity import masks

ROWS, LENGTH, STEPS = 8, 512, 2  # the second step has Adam's moments from its start
KINDS = ("plain", "checkpointing")


class Peak(threading.Thread):
    """The highest resident memory of this process from start to stop, read every 5 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.process, self.highest, self.going = psutil.Process(), 0, True

    def run(self) -> None:
        while self.going:
            self.highest = max(self.highest, self.process.memory_info().rss)
            time.sleep(0.005)


def computed(student: BertForMaskedLM, *, rows: int, length: int, read: int, element: int, checkpointing: bool) -> Row:
    """Bytes by part and their `peak`. read: positions with logits. element: bytes of a number in a product."""
    shape = step_costs.shape(student, masks.prunable(student, models.PRUNABLE))
    piece = step_costs.Piece(
        rows=rows,
        length=length,
        read=read,
        tile=step_costs.tile("cpu"),
        element=element,
        probabilities=1,
        dropouts=0,
        teacher=True,
        soft=False,
        hidden=True,
        quantized=False,
        checkpointing=checkpointing,
        accumulates=False,
        processes=1,
    )
    return step_costs.memory(shape, piece)


def step(config: BertConfig, *, rows: int, length: int, checkpointing: bool) -> Row:
    """Bytes that this process took (`measured`), and those of `computed`."""
    before, watch = psutil.Process().memory_info().rss, Peak()
    watch.start()
    student, teacher = BertForMaskedLM(config), models.teacher(BertForMaskedLM(config))
    if checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    batch = batches.random_blocks(rows, length, seed=0)
    loss = masked_lm.distilled_loss(teacher, PROFILE, soft_positions=masked_lm.masked_tokens)
    train(student, lambda step: batch, loss, steps=STEPS, compute=Compute(), prune=models.prune)
    watch.going = False
    watch.join()
    masks.bake(student)
    read, element = int((batch["labels"] != IGNORED).sum()), 2 if cpu_has_bf16() else 4
    parts = computed(student, rows=rows, length=length, read=read, element=element, checkpointing=checkpointing)
    return {"measured": watch.highest - before, **parts}


def row(kind: str) -> Row:
    """MiB of one kind of step, measured in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.memory", "--here", kind]
    env = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "0"}  # freed pages go back at once, else the allocator is measured
    root = Path(__file__).parents[1]
    done = subprocess.run(words, cwd=root, env=env, stdout=subprocess.PIPE, text=True, check=True)
    parts = {key: value / 2**20 for key, value in json.loads(done.stdout.splitlines()[-1]).items()}
    measured, peak = parts.pop("measured"), parts.pop("peak")
    found = {"computed MiB": peak, "measured MiB": measured, "ratio": measured / peak}
    return {"step": kind, **parts, **found, "bar": bar("<= 1.3", met=measured <= 1.3 * peak)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--checkpointing", action="store_true", help="also with gradient checkpointing")
    parser.add_argument("--here", choices=KINDS, help="one measurement in this process, as JSON")
    args = parser.parse_args()
    if args.here:
        config = models.config("BERT-Base", dropout=0.0, attention="eager")
        print(json.dumps(step(config, rows=ROWS, length=LENGTH, checkpointing=args.here == "checkpointing")))
        return
    rows = [row(kind) for kind in KINDS[: 1 + args.checkpointing]]
    publish(f"Memory of a step of student pruning, BERT-Base, {ROWS} x {LENGTH}", rows, file=args.json)


if __name__ == "__main__":
    main()
