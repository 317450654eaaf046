"""Losses and held-out metrics of masked language modelling and next-sentence prediction."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from pruneonce.batch import IGNORED, Batch, Loss, inputs, pieces
from pruneonce.distillation import vocabulary
from pruneonce.distillation.losses import Distillation, inner_losses, outputs_for, soft_loss
from pruneonce.distillation.vocabulary import Head
from pruneonce.errors import DataError, ModelError
from pruneonce.language.corpus import MaskedBlocks, read_blocks
from pruneonce.sparsity.masks import body

NEXT_SENTENCE = "next_sentence_label"  # int64[batch], 1 for a B that does not follow A; only with segment pairs


def head_at(model: nn.Module, batch: Batch, positions: Tensor, **outputs: bool) -> tuple[Head, Any]:
    """Run a masked LM without its last linear, and its head only at `positions`: bool[batch, length], n of them True.

    The logits at all positions would be the largest part of a small model's cost.
    outputs: what the model returns besides, such as `output_hidden_states=True`.
    Returns the last linear with its n input rows, and the model's output without logits.
    Raises ModelError if the model's logits are not the output of its `get_output_embeddings()`.
    """
    inner: Any = getattr(model, "module", model)  # under data parallelism
    last, heads = inner.get_output_embeddings(), list[Head]()

    def select(module, args, output):
        output["last_hidden_state"] = output["last_hidden_state"][positions].unsqueeze(0)
        return output

    def stop(module, args):
        heads.append(Head(args[0].squeeze(0), module.weight, module.bias))  # a sharded weight is whole at this point
        return (args[0][:, :0],)  # no rows, so no logits are computed

    handles = [body(inner).register_forward_hook(select)]
    if last is not None:
        handles.append(last.register_forward_pre_hook(stop))
    try:
        out = model(**inputs(batch), **outputs)
    finally:
        for handle in handles:
            handle.remove()
    logits = out["prediction_logits" if "prediction_logits" in out else "logits"]  # the former with a next-sentence head
    if not heads or logits.shape[-1] != len(heads[0].weight):
        raise ModelError(
            f"expected a masked LM that ends in its output embeddings, found {type(inner).__name__}, whose logits come from "
            "elsewhere. Choose another `common.model`."
        )
    return heads[0], out


def hard_loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return the mean cross entropy at the masked positions, 0 without any: how a teacher learns.

    For segment pairs the loss of next-sentence prediction is added.
    """
    masked = masked_tokens(batch)
    head, out = head_at(model, batch, masked)
    losses = vocabulary.cross_entropy(head, batch["labels"][masked])
    if NEXT_SENTENCE not in batch:
        return {"loss": losses.loss}
    next_sentence = next_sentence_loss(out, batch)
    return {"loss": losses.loss + next_sentence, "hard": losses.hard, "next_sentence": next_sentence}


def next_sentence_loss(out: Any, batch: Batch) -> Tensor:
    """Return the mean cross entropy of the model's next-sentence logits float[batch, 2]: B follows A (class 0) or not."""
    return F.cross_entropy(out.seq_relationship_logits.float(), batch[NEXT_SENTENCE])


def masked_tokens(batch: Batch) -> Tensor:
    """Return bool[batch, length], True where a token was masked and has a label."""
    return batch["labels"] != IGNORED


def all_tokens(batch: Batch) -> Tensor:
    """Return bool[batch, length], True where there is a token: not at padding."""
    return batch["attention_mask"].bool()


SOFT_POSITIONS: dict[str, Callable[[Batch], Tensor]] = {"masked": masked_tokens, "all": all_tokens}  # all: the paper's


def distilled_loss(teacher: nn.Module, distillation: Distillation, *, soft_positions: Callable[[Batch], Tensor]) -> Loss:
    """Return the loss of a student that learns from the labels and from its teacher, of (student, batch).

    loss = hard_weight * hard + soft_weight * soft + hidden_weight * hidden + attention_weight * attention
    hard, soft over the vocabulary: `distillation.vocabulary.distilled`, with the formula of `losses.soft_loss`. Batches of
    segment pairs add the hard and the soft loss of next-sentence prediction, with the same weights.
    soft_positions: batch -> bool[batch, length], the tokens whose logits the soft loss reads.
    """
    d = distillation
    soft = d.soft_weight > 0

    def loss(student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        positions = soft_positions(batch) if soft else masked_tokens(batch)
        student_head, student_out = head_at(student, batch, positions, **outputs_for(d))
        with torch.no_grad():
            teacher_head, teacher_out = head_at(teacher, batch, positions, **outputs_for(d))
        losses = vocabulary.distilled(student_head, batch["labels"][positions], teacher_head if soft else None, d)
        parts = {"hard": losses.hard} | ({"soft": losses.soft} if soft else {})
        more: dict[str, tuple[float, Tensor]] = {}
        if NEXT_SENTENCE in batch:
            more["next_sentence"] = d.hard_weight, next_sentence_loss(student_out, batch)
        if NEXT_SENTENCE in batch and soft:
            logits = student_out.seq_relationship_logits, teacher_out.seq_relationship_logits
            more["soft_next_sentence"] = d.soft_weight, soft_loss(*logits, d.temperature)
        more |= inner_losses(student_out, teacher_out, batch["attention_mask"], d)
        total = losses.loss
        for weight, part in more.values():
            total = total + weight * part
        return {"loss": total, **parts, **{name: part for name, (_, part) in more.items()}}

    return loss


class Recipe(Protocol):
    """The numbers of a training on masked language modelling, as params.yaml has them."""

    @property
    def batch_size(self) -> int: ...
    @property
    def masking_probability(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def held_out_batches(self) -> int: ...  # the closing metric reads at most so many


def read_batches(
    folder: Path, tokenizer: Any, recipe: Recipe, *, train_seed: int, held_out_seed: int
) -> tuple[MaskedBlocks, MaskedBlocks]:
    """Return the batches of the corpus in `folder`: train, held out. With masking_probability 0 they are plain text.

    Raises DataError if tokens are to be masked, and none of one of them would be.
    """
    batches = partial(
        MaskedBlocks, tokenizer=tokenizer, batch_size=recipe.batch_size, probability=recipe.masking_probability
    )
    train = batches(read_blocks(folder / "train.arrow"), seed=train_seed)
    held_out = batches(read_blocks(folder / "held_out.arrow"), seed=held_out_seed)
    if recipe.masking_probability:
        check_masked(train, limit=recipe.steps, part="train")
        check_masked(held_out, limit=recipe.held_out_batches, part="held-out")
    return train, held_out


def check_masked(batches: MaskedBlocks, *, limit: int, part: str) -> None:
    """Raise DataError if none of the first `limit` batches (at most an epoch) has a masked token.

    part: name of the part of the corpus, for the message. Call it before a training: the masks depend on the step alone.
    """
    steps = min(limit, len(batches))
    if not any(masked_tokens(batch).any() for batch in batches.first(limit)):
        raise DataError(
            f"expected a masked token in {steps} batches of {part} blocks, found none: {len(batches.blocks)} blocks and "
            f"masking_probability {batches.probability:g} are too little. Raise masking_probability, prepare_corpus."
            "held_out_ratio or held_out_batches, or take more text."
        )


@torch.inference_mode()
def held_out(model: nn.Module, batches: MaskedBlocks, *, engine: Accelerator, limit: int) -> dict[str, float]:
    """Return the mean MLM loss over the masked tokens of at most `limit` batches of held-out blocks, and its perplexity.

    With segment pairs also the accuracy, in [0, 1], of next-sentence prediction.
    Raises DataError if no token is masked.
    """
    check_masked(batches, limit=limit, part="held-out")
    was_training = model.training
    model.eval().to(engine.device)
    total, count, right, rows = 0.0, 0, 0, 0
    parts = (piece for batch in batches.first(limit) for piece in pieces(batch, engine))
    for batch in ({k: v.to(engine.device) for k, v in piece.items()} for piece in parts):
        chosen = masked_tokens(batch)
        with engine.autocast():
            head, out = head_at(model, batch, chosen)
            logits = F.linear(*head)
        total += float(F.cross_entropy(logits.float(), batch["labels"][chosen], reduction="sum"))
        count += int(chosen.sum())
        if NEXT_SENTENCE in batch:
            right += int((out.seq_relationship_logits.argmax(-1) == batch[NEXT_SENTENCE]).sum())
            rows += len(batch[NEXT_SENTENCE])
    model.train(was_training)
    loss = total / count
    metrics = {"held_out_loss": loss, "held_out_perplexity": math.exp(min(loss, 700.0))}
    return metrics | ({"held_out_next_sentence_accuracy": right / rows} if rows else {})
