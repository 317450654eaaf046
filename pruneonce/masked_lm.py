"""Masked language modelling: logits only where a loss reads them, the hard loss, the held-out metric."""

import math

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from pruneonce.corpus import IGNORED, MaskedBlocks
from pruneonce.distillation import hidden_loss, soft_loss
from pruneonce.pruning import body
from pruneonce.training import Batch, Loss


def forward_at(model: nn.Module, batch: Batch, positions: Tensor, *, hidden: bool = False):
    """Run a masked LM with its head at `positions` only: bool[batch, length], n of them True.

    The head is most of the vocabulary's cost and is the same function at every position, so what it is not asked for
    need not be computed. Returns logits float[n, vocabulary] and, if asked for, the hidden states of every layer.
    """
    inner = getattr(model, "module", model)  # under data parallelism

    def select(module, args, output):
        output["last_hidden_state"] = output["last_hidden_state"][positions].unsqueeze(0)
        return output

    handle = body(inner).register_forward_hook(select)
    try:
        out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=hidden)
    finally:
        handle.remove()
    return out.logits.squeeze(0), (out.hidden_states[1:] if hidden else ())


def hard_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy, 0 of nothing. logits: float[n, vocabulary] wherever the label is not IGNORED, in order."""
    if not len(logits):
        return logits.float().sum()  # a small batch may have no masked token; a mean over nothing would be nan
    return F.cross_entropy(logits.float(), labels[labels != IGNORED])


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

    def loss(student: nn.Module, batch: Batch) -> dict[str, Tensor]:
        chosen = batch["labels"] != IGNORED
        read = batch["attention_mask"].bool() if everywhere and soft_weight > 0 else chosen
        logits, states = forward_at(student, batch, read, hidden=hidden_weight > 0)
        with torch.no_grad():
            their_logits, their_states = forward_at(teacher, batch, read, hidden=hidden_weight > 0)
        parts = {"hard": hard_loss(logits[chosen[read]], batch["labels"])}
        if soft_weight > 0 and len(logits):
            parts["soft"] = soft_loss(logits, their_logits, temperature)
        if hidden_weight > 0:
            parts["hidden"] = hidden_loss(states, their_states, batch["attention_mask"])
        weights = {"hard": hard_weight, "soft": soft_weight, "hidden": hidden_weight}
        return {"loss": torch.stack([weights[name] * part for name, part in parts.items()]).sum(), **parts}

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
            logits, _ = forward_at(model, batch, chosen)
        total += float(hard_loss(logits, batch["labels"])) * int(chosen.sum())
        count += int(chosen.sum())
    model.train(was_training)
    loss = total / count
    return {"held_out_loss": loss, "held_out_perplexity": math.exp(min(loss, 700.0))}
