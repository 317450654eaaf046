"""One training loop for every stage that trains, on Hugging Face Accelerate.

The stage passes in the batches, the loss and a hook before each step. Batches, learning rate and sparsity are pure
functions of the step. So the state of a run is its step and what `resume.State` lists. A run that was interrupted ends with
the bytes of one that was not.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from pruneonce.batch import Batch, Loss, mix, pieces
from pruneonce.errors import LossNotFinite
from pruneonce.training.resume import State

Log = Callable[[int, Mapping[str, float]], None]  # (step, metrics)


class Checkpoints(Protocol):
    """Where the states of a training are kept, and when one is saved. It changes no result."""

    def newest_first(self) -> Sequence[Path]:
        """The files of saved states; the first one that is whole is taken."""

    def after_step(self, steps: int, save: Callable[[Path, int], bool]) -> None:
        """Called between two steps, by every process. save: `State.save`. May raise, to end the training."""


def adamw(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only: none on biases and normalisation, as BERT was trained."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    rest = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}], lr=0.0, fused=True
    )


def fit(
    model: nn.Module,
    batches: Callable[[int], Batch],
    loss: Loss,
    *,
    engine: Accelerator,
    learning_rate: Callable[[int], float],
    steps: int,
    weight_decay: float,
    clip_norm: float,
    seed: int,
    before_step: Callable[[int], dict[str, float]] = lambda step: {},
    log: Log = lambda step, metrics: None,
    name: str = "train",
    checkpoints: Checkpoints | None = None,
) -> None:
    """Take `steps` optimizer steps on `model`, in place. Goes on from the newest of the `checkpoints`.

    batches: step -> the batch of that step, the same on every process. Each process computes a part of it.
    loss: (model, part of a batch) -> scalars by name. The one named "loss" is minimised, all are logged.
    engine: of `engine.accelerator`. It gives device, precision, micro-batches and processes.
    learning_rate: step -> the rate of that step.
    weight_decay: of AdamW, on matrices only.
    clip_norm: a gradient of a larger norm, over all parameters, is scaled down to it.
    seed: of dropout, together with the step and the process.
    before_step: step -> numbers to log. A hook, e.g. one that prunes.
    log: called after every step with the step and its numbers.
    name: of the training, in the progress bar and in errors.
    checkpoints: the saved states. None: no state is written or read.
    Raises LossNotFinite, before the optimizer is stepped, if the loss or the gradient norm is inf or nan.
    """
    say = cache(partial(tqdm.write, file=sys.stderr))  # prints the same line once
    optimizer = adamw(model, weight_decay)
    state = State(model, optimizer, engine, say)
    start = state.resume(checkpoints.newest_first(), steps) if checkpoints else 0
    model, optimizer = engine.prepare(model, optimizer)
    model.train()
    progress = tqdm(total=steps, initial=start, desc=name, unit="step", mininterval=1.0, disable=not engine.is_main_process)
    tokens, began = 0, time.monotonic()

    with progress as bar:
        for step in range(start, steps):
            extra = before_step(step)
            torch.manual_seed(mix(seed, step, engine.process_index))  # dropout is a function of the step and the process
            rate = learning_rate(step)
            for group in optimizer.param_groups:
                group["lr"] = rate

            batch = batches(step)
            losses = []
            for micro_batch in _micro_batches(batch, engine):
                with engine.accumulate(model), engine.autocast():
                    value = loss(model, micro_batch)
                    engine.backward(value["loss"])
                losses.append({key: part.detach() for key, part in value.items()})
            parts = _mean(losses, engine)
            norm = float(engine.clip_grad_norm_(model.parameters(), clip_norm))
            if not torch.isfinite(torch.tensor([parts["loss"], norm])).all():
                raise LossNotFinite(
                    f"expected a finite loss, found loss {parts['loss']} and gradient norm {norm} at step {step} of {name}. "
                    "Lower its learning_rate, or set common.precision to fp32, and run again."
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            tokens += int(batch["attention_mask"].sum())
            speed = tokens / (time.monotonic() - began)
            bar.set_postfix_str(f"{speed:,.0f} tokens/s, loss {parts['loss']:.3f}", refresh=False)
            bar.update()
            log(step, {**parts, "gradient_norm": norm, "learning_rate": rate, "tokens_per_second": speed, **extra})
            if checkpoints and step + 1 < steps:
                checkpoints.after_step(step + 1, state.save)
    engine.free_memory()
    model.eval()


def _micro_batches(batch: Batch, engine: Accelerator) -> list[Batch]:
    """This process's pieces of the batch. Where there are too few pieces, processes compute the same one."""
    all_pieces, count = pieces(batch, engine), engine.num_processes * engine.gradient_accumulation_steps
    own = (all_pieces[i % len(all_pieces)] for i in range(engine.process_index, count, engine.num_processes))
    return [{name: tensor.to(engine.device) for name, tensor in piece.items()} for piece in own]


def _mean(losses: list[dict[str, Tensor]], engine: Accelerator) -> dict[str, float]:
    """Return the mean of every part of the loss over the micro-batches of all processes. Every process returns the same."""
    total = torch.stack([torch.stack([part.float() for part in parts.values()]) for parts in losses]).mean(0)
    return dict(zip(losses[0], engine.reduce(total, reduction="mean").tolist(), strict=True))
