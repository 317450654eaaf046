"""A plain `transformers.Trainer` script, which the training benchmarks compare with.

fp32, dropout as the configuration has it, logits of the whole vocabulary at every position, texts padded to one
length, masks applied to `weight.data` after each optimizer step.
"""

import tempfile
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from pruneonce.batch import Batch

TEMPERATURE = 2.0


class Distilling(Trainer):
    """Half the model's own loss, half KL against the teacher, at every position that is not padding."""

    def __init__(self, *args, teacher: nn.Module, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher = teacher

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        out = model(**inputs)
        with torch.no_grad():
            teacher = self.teacher(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        student, classes = out.logits, out.logits.shape[-1]
        soft = F.kl_div(
            F.log_softmax(student.view(-1, classes) / TEMPERATURE, dim=-1),
            F.softmax(teacher.view(-1, classes) / TEMPERATURE, dim=-1),
            reduction="batchmean",
        )
        loss = 0.5 * out.loss + 0.5 * TEMPERATURE**2 * soft
        return (loss, out) if return_outputs else loss


class Masks(TrainerCallback):
    """Sets the pruned weights to zero after each step, and keeps the end time of every step."""

    def __init__(self, masks: Mapping[Any, Tensor]):
        self.masks, self.ends = masks, list[float]()

    def on_step_end(self, args, state, control, **kwargs):
        for weight, mask in self.masks.items():
            weight.data.mul_(mask)
        self.ends.append(time.perf_counter())


def train(student: nn.Module, teacher: nn.Module, batches: list[Batch], *, masks: Mapping[Any, Tensor]) -> float:
    """Time in seconds of all steps but the first, one batch each."""
    rows = [{key: value[i] for key, value in batch.items()} for batch in batches for i in range(len(batch["labels"]))]
    watch = Masks(masks)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=len(batches[0]["labels"]),
            max_steps=len(batches),
            learning_rate=1e-4,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Distilling(student, settings, train_dataset=rows, teacher=teacher, callbacks=[watch])
        trainer.remove_callback(PrinterCallback)
        if trainer.accelerator.mixed_precision != "no":
            raise RuntimeError(f"expected a Trainer in fp32, found {trainer.accelerator.mixed_precision}.")
        trainer.train()
    return watch.ends[-1] - watch.ends[0]
