"""Peak memory of a step of student pruning, BERT-Base at batch 8 x 512, against what such a step must hold.

Resident memory of a process of its own; what imports take is measured first and taken off. A step must hold, in fp32:

    student   12 bytes a parameter: weight, two moments of Adam
    teacher    4 bytes a parameter
    masks      1 byte a prunable weight
    layers    what the backward of each layer reads (with checkpointing: of one layer, and every layer's input)
    states    hidden states of student and teacher, which the loss compares
    head      the gradient of the last linear, 4 bytes a weight, which the loss makes in the forward, and the logits of one
              piece of rows

and gradients, 4 bytes a parameter, or the last three lines, whichever is more: a backward frees the one while it makes
the other. A layer reads, of n = batch * length tokens, hidden h, feed-forward f, a heads, bytes e an element (2 in bf16):

    n (6 h + 2 f) e + 4 batch a length^2 + 8 n h

the inputs of its products once each, query, key, value, the feed-forward before and after its activation; attention's
probabilities in fp32; the inputs of two normalisations in fp32.
"""

import json
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil

from benchmarks.measuring import Compute, arguments, bar, publish

PIECE = 1024  # `vocabulary.PIECE`, which takes torch to import
ROWS, LENGTH, STEPS = 8, 512, 2  # the second step has Adam's moments from its start


def needed(config, *, parameters: int, prunable: int, read: int, element: int, checkpointing: bool) -> dict[str, float]:
    """Bytes by part, and what must be held of them; the formula of this module's docstring."""
    h, f, n = config.hidden_size, config.intermediate_size, ROWS * LENGTH
    layer = n * (6 * h + 2 * f) * element + 4 * ROWS * config.num_attention_heads * LENGTH**2 + 8 * n * h
    layers = layer + config.num_hidden_layers * n * h * 4 if checkpointing else config.num_hidden_layers * layer
    kept = {"student": 12 * parameters, "teacher": 4 * parameters, "masks": prunable}
    freed = {
        "layers": layers,
        "states": 2 * config.num_hidden_layers * 4 * n * h,
        "head": (4 * h + element * min(read, PIECE)) * config.vocab_size,
    }
    gradients = 4 * parameters
    must = sum(kept.values()) + max(gradients, sum(freed.values()))
    return {**kept, "gradients": gradients, **freed, "must": must}


class Peak(threading.Thread):
    """The highest resident memory from start to stop, asked for every 5 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.process, self.highest, self.going = psutil.Process(), 0, True

    def run(self) -> None:
        while self.going:
            self.highest = max(self.highest, self.process.memory_info().rss)
            time.sleep(0.005)


def step(checkpointing: bool) -> dict[str, float]:
    """Bytes found and bytes needed by part, in this process."""
    from transformers import BertConfig, BertForMaskedLM

    from benchmarks.train import PROFILE, random_blocks
    from pruneonce.batch import IGNORED
    from pruneonce.engine import accelerator
    from pruneonce.language import masked_lm
    from pruneonce.sparsity import masks
    from pruneonce.training import loop, schedules

    engine = accelerator(Compute())
    before = psutil.Process().memory_info().rss
    watch = Peak()
    watch.start()
    config = BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config._attn_implementation = "eager"
    student, mentor = BertForMaskedLM(config), BertForMaskedLM(config).eval().requires_grad_(False)
    if checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    linears = masks.mask_linears(student, r"^encoder\.")
    masks.prune(student, 0.85)
    batch = random_blocks(ROWS, LENGTH, seed=0)
    loop.fit(
        student,
        lambda step: batch,
        masked_lm.distilled_loss(mentor, **PROFILE, everywhere=False),
        engine=engine,
        learning_rate=partial(schedules.linear_decay, steps=STEPS, warmup=1, peak=1e-4),
        steps=STEPS,
        weight_decay=0.01,
        clip_norm=1.0,
        seed=1,
    )
    watch.going = False
    watch.join()
    parts = needed(
        config,
        parameters=sum(p.numel() for p in student.parameters()),
        prunable=sum(m.weight.numel() for m in linears.values()),
        read=int((batch["labels"] != IGNORED).sum()),
        element=2 if engine.mixed_precision == "bf16" else 4,
        checkpointing=checkpointing,
    )
    return {"found": watch.highest - before, **parts}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--checkpointing", action="store_true", help="also with gradient checkpointing")
    parser.add_argument("--here", choices=["plain", "checkpointing"], help="one measurement in this process, as JSON")
    args = parser.parse_args()
    if args.here:
        print(json.dumps(step(args.here == "checkpointing")))
        return
    rows = []
    for kind in ["plain", *(["checkpointing"] if args.checkpointing else [])]:
        words = [sys.executable, "-m", "benchmarks.memory", "--here", kind]
        # Freed pages go back at once: else the allocator's habits are measured.
        env = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "0"}
        root = Path(__file__).parents[1]
        done = subprocess.run(words, cwd=root, env=env, stdout=subprocess.PIPE, text=True, check=True)
        parts = {key: value / 2**20 for key, value in json.loads(done.stdout.splitlines()[-1]).items()}
        peak, must = parts.pop("found"), parts.pop("must")
        rows.append(
            {
                "step": kind,
                **parts,
                "must MiB": must,
                "peak MiB": peak,
                "ratio": peak / must,
                "bar": bar("<= 1.3", met=peak <= 1.3 * must),
            }
        )
    publish(f"Memory of a step of student pruning, BERT-Base, {ROWS} x {LENGTH}", rows, file=args.json)


if __name__ == "__main__":
    main()
