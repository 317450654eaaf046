"""Ten steps of student pruning on a tiny BERT, then the first ranges of its quantization, each process on its share;
`torchrun -m tests.integration.curve FOLDER` leaves FOLDER/<rank>.json.

Every row has the same number of masked tokens, so the mean over processes of their shares' means is the mean of the batch.
"""

import copy
import json
import os
import sys
from pathlib import Path

import torch

from pruneonce import quantization
from pruneonce.batch import Batch
from pruneonce.engine import accelerator
from pruneonce.language import masked_lm
from pruneonce.sparsity import masks, movement, second_order
from pruneonce.sparsity.criterion import Calibration
from pruneonce.training import loop
from tests.conftest import PRUNABLE, Cpu, distillation, random_masked_lm, token_batch

STEPS, ROWS = 10, 8


def batches(step: int) -> Batch:
    """Eight rows without padding, three masked tokens in each."""
    batch = token_batch(step, rows=ROWS, length=12)
    ids = batch["input_ids"].clamp(min=5)
    labels = torch.full_like(ids, -100)
    labels[:, 2:8:2] = ids[:, 2:8:2]
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def main(folder: Path) -> None:
    engine, losses, rows = accelerator(Cpu()), list[float](), list[int]()
    # In float32 two scores next to each other at a threshold may change places, and then another weight is pruned.
    student = random_masked_lm().double()
    teacher = copy.deepcopy(student).requires_grad_(False)
    linears = masks.mask_linears(student, PRUNABLE, movement.ScoredLinear)

    distilled = masked_lm.distilled_loss(
        teacher, distillation(hard_weight=0.5, soft_weight=0.5), soft_positions=masked_lm.all_tokens
    )

    def loss(model, batch):
        rows.append(len(batch["labels"]))
        return distilled(model, batch)

    def calibration(step: int) -> Batch:
        return batches(step + 1000 * engine.process_index)  # far more than rounding would part the processes by

    def before_step(step: int) -> dict[str, float]:
        movement.share_scores(student, engine)
        if step == 0:
            second_order.prune(student, linears, Calibration(sample=calibration, batches=2, engine=engine), 0.2)
        else:
            masks.prune(student, 0.08 * step, score=movement.score if step % 3 == 0 else masks.magnitude)
        return {}

    loop.fit(
        student,
        batches,
        loss,
        engine=engine,
        learning_rate=lambda step: 1e-3,
        steps=STEPS,
        weight_decay=0.01,
        clip_norm=1.0,
        seed=1,
        before_step=before_step,
        log=lambda step, metrics: losses.append(metrics["loss"]),
    )
    masks.bake(student)
    weights = {name: weight.flatten().tolist() for name, weight in student.named_parameters()}
    student.float()  # fake quantization is of float32
    masks.mask_linears(student, PRUNABLE, quantization.FakeQuantLinear)
    masks.lock(student)
    shares = [{k: v[engine.process_index :: engine.num_processes] for k, v in batches(step).items()} for step in range(3)]
    quantization.calibrate(student, shares, engine=engine)
    found = {"processes": engine.num_processes, "losses": losses, "rows": rows, "weights": weights}
    quantized = quantization.quantized_linears(student)
    found["ranges"] = {name: (float(linear.low), float(linear.high)) for name, linear in quantized.items()}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
