"""A batch: what a model reads of it and says of it, its pieces, and the seed of its step."""

from collections.abc import Callable, Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

Batch = dict[str, Tensor]  # every tensor has the rows of the batch in front
Loss = Callable[[nn.Module, Batch], dict[str, Tensor]]  # parts by name; "loss" is the one to minimise

IGNORED = -100  # label of a position that no loss reads, as in torch's cross_entropy
INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # what a model reads of a batch, where the batch has it


def inputs(batch: Batch) -> Batch:
    """The part of a batch that the model reads; labels and the like are the loss's."""
    return {name: batch[name] for name in INPUTS if name in batch}


def logits(out: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """What a model says, as one tensor float[batch, ...]; several outputs are stacked behind the batch."""
    return out[names[0]] if len(names) == 1 else torch.stack([out[name] for name in names], dim=1)


def pieces(batch: Batch, engine: Accelerator) -> list[Batch]:
    """The batch in equal pieces, up to a row, as small as training computes them: one a process and micro-batch.

    A batch of fewer rows is cut into its rows.
    """
    count, rows = engine.num_processes * engine.gradient_accumulation_steps, len(batch["attention_mask"])
    return [{name: tensor[i::count] for name, tensor in batch.items()} for i in range(min(count, rows))]


def mix(seed: int, step: int) -> int:
    """One seed out of two numbers, well apart for neighbouring steps."""
    return (seed * 1_000_003 + step * 7_919 + 17) % 2**63
