"""A batch: the inputs and the logits of a model, the batch in pieces, and the seed of a step."""

from collections.abc import Callable, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

Batch = dict[str, Tensor]  # every tensor has the rows of the batch in front
Loss = Callable[[nn.Module, Batch], dict[str, Tensor]]  # parts by name; "loss" is the one to minimise

IGNORED = -100  # label of a position that no loss reads, as in torch's cross_entropy
INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # what a model reads of a batch, where the batch has it


def inputs(batch: Batch) -> Batch:
    """Return the part of a batch that the model reads. The loss reads the rest, such as labels."""
    return {name: batch[name] for name in INPUTS if name in batch}


def logits(out: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Return the logits of a model's output as one tensor, float[batch, ...]; several are stacked behind the batch axis."""
    return out[names[0]] if len(names) == 1 else torch.stack([out[name] for name in names], dim=1)


def pieces(batch: Batch, engine: Accelerator) -> list[Batch]:
    """Return the batch in pieces as small as in training: one for each process and micro-batch, equal up to a row.

    A batch of fewer rows is cut into its rows.
    """
    count, rows = engine.num_processes * engine.gradient_accumulation_steps, len(batch["attention_mask"])
    return [{name: tensor[i::count] for name, tensor in batch.items()} for i in range(min(count, rows))]


def mix(seed: int, step: int, process: int = 0) -> int:
    """Return a seed for each step of each process; those of neighbours are far apart."""
    return (seed * 1_000_003 + step * 7_919 + process * 104_729 + 17) % 2**63
