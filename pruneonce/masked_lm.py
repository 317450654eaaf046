"""Masked language modelling: the head only where a loss reads it, its losses, the held-out metric."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from pruneonce import vocabulary
from pruneonce.corpus import IGNORED, MaskedBlocks
from pruneonce.distillation import hidden_loss
from pruneonce.errors import ModelError
from pruneonce.pruning import body
from pruneonce.training import Batch, Loss, inputs
from pruneonce.vocabulary import Head


def head_at(model: nn.Module, batch: Batch, positions: Tensor, *, hidden: bool = False) -> tuple[Head, Sequence[Tensor]]:
    """Run a masked LM up to its last linear, from there on only for `positions`: bool[batch, length], n of them True.

    The logits are most of a small model's cost, and the head is the same function at every position. Returns the last
    linear with what it reads, n rows, and, if asked for, the hidden states of every layer.
    Raises ModelError if the model's logits are not the output of its `get_output_embeddings()`.
    """
    inner: Any = getattr(model, "module", model)  # under data parallelism
    last, found = inner.get_output_embeddings(), list[Head]()

    def select(module, args, output):
        output["last_hidden_state"] = output["last_hidden_state"][positions].unsqueeze(0)
        return output

    def stop(module, args):
        found.append(Head(args[0].squeeze(0), module.weight, module.bias))  # here a sharded weight is whole
        return (args[0][:, :0],)  # of no rows there are no logits to compute

    handles = [body(inner).register_forward_hook(select)]
    if last is not None:
        handles.append(last.register_forward_pre_hook(stop))
    try:
        out = model(**inputs(batch), output_hidden_states=hidden)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ModelError(
            f"expected a masked LM that ends in its output embeddings, found {type(inner).__name__}, whose logits come from "
            "elsewhere. Choose another `common.model`."
        )
    return found[0], (out.hidden_states[1:] if hidden else ())


def hard_loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Mean cross entropy at the masked positions, 0 without any: how a teacher learns."""
    chosen = batch["labels"] != IGNORED
    head, _ = head_at(model, batch, chosen)
    loss = vocabulary.distilled(head, batch["labels"][chosen], None, hard_weight=1.0, soft_weight=0.0, temperature=1.0)
    return {"loss": loss.loss}


def distilled_loss(
    teacher: nn.Module,
    *,
    hard_weight: float,
    soft_weight: float,
    hidden_weight: float,
    temperature: float,
    everywhere: bool,
) -> Loss:
    """hard_weight * MLM + soft_weight * KL against the teacher's logits + hidden_weight * hidden-state error.

    everywhere: the soft loss reads the logits of all non-padding tokens (the paper), else of the masked ones only.
    """
    weights = {"hard_weight": hard_weight, "soft_weight": soft_weight, "temperature": temperature}

    def loss(student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        chosen = batch["labels"] != IGNORED
        read = batch["attention_mask"].bool() if everywhere and soft_weight > 0 else chosen
        ours, states = head_at(student, batch, read, hidden=hidden_weight > 0)
        with torch.no_grad():
            theirs, their_states = head_at(teacher, batch, read, hidden=hidden_weight > 0)
        found = vocabulary.distilled(ours, batch["labels"][read], theirs if soft_weight > 0 else None, **weights)
        parts = {"loss": found.loss, "hard": found.hard}
        if soft_weight > 0:
            parts["soft"] = found.soft
        if hidden_weight > 0:
            parts["hidden"] = hidden_loss(states, their_states, batch["attention_mask"])
            parts["loss"] = parts["loss"] + hidden_weight * parts["hidden"]
        return parts

    return loss


@torch.inference_mode()
def held_out(model: nn.Module, batches: MaskedBlocks, *, engine: Accelerator, limit: int) -> dict[str, float]:
    """Mean MLM loss over the masked tokens of at most `limit` batches of held-out blocks, and its perplexity."""
    was_training = model.training
    model.eval().to(engine.device)
    total, count = 0.0, 0
    for step in range(min(limit, len(batches))):
        batch = {k: v.to(engine.device) for k, v in batches(step).items()}
        chosen = batch["labels"] != IGNORED
        with engine.autocast():
            head, _ = head_at(model, batch, chosen)
            logits = F.linear(*head)
        total += float(F.cross_entropy(logits.float(), batch["labels"][chosen], reduction="sum"))
        count += int(chosen.sum())
    model.train(was_training)
    loss = total / count
    return {"held_out_loss": loss, "held_out_perplexity": math.exp(min(loss, 700.0))}
