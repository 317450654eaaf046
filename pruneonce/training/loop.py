"""One training loop for every stage that trains, on Hugging Face Accelerate.

What varies is passed in: the batches, the loss, what happens before a step. Batches, learning rate and sparsity are
pure functions of the step, so the state of a run is its weights, its optimizer, its masks and its step, and a run
that was interrupted ends with the bytes of one that was not. A saved state that is not whole, or not of this run, is
discarded with a line, and the run begins again.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from pruneonce.batch import Batch, Loss, mix, pieces
from pruneonce.errors import DataError, LossNotFinite, plain
from pruneonce.sparsity.masks import MaskedLinear

Log = Callable[[int, Mapping[str, float]], None]  # (step, metrics)


def adamw(model: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with decay on matrices only: no decay on biases and normalisation, as BERT was trained."""
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
    checkpoint: Path | None = None,
    checkpoint_every_steps: int = 200,
) -> None:
    """Take `steps` optimizer steps on `model`, in place, resuming from `checkpoint` if one is there.

    batches: step -> one batch of the whole optimizer step, the same on every process; each takes its share.
    before_step: e.g. prune to this step's sparsity; what it returns is logged with the step.
    Raises LossNotFinite, before the optimizer is stepped, if the loss or the gradient norm is inf or nan.
    """
    say = cache(partial(tqdm.write, file=sys.stderr))  # the same line once
    optimizer = adamw(model, weight_decay)
    start = _resume(checkpoint, model, optimizer, steps, engine, say) if checkpoint else 0
    model, optimizer = engine.prepare(model, optimizer)
    model.train()
    progress = tqdm(total=steps, initial=start, desc=name, unit="step", mininterval=1.0, disable=not engine.is_main_process)
    tokens, began = 0, time.monotonic()

    with progress as bar:
        for step in range(start, steps):
            torch.manual_seed(mix(seed, step))  # dropout, if any, is a function of the step as well
            extra = before_step(step)
            rate = learning_rate(step)
            for group in optimizer.param_groups:
                group["lr"] = rate

            batch = batches(step)
            shares = []
            for micro in _shares(batch, engine):
                with engine.accumulate(model), engine.autocast():
                    value = loss(model, micro)
                    engine.backward(value["loss"])
                shares.append({key: part.detach() for key, part in value.items()})
            parts = _mean(shares, engine)
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
            if checkpoint and (step + 1) % checkpoint_every_steps == 0 and step + 1 < steps and engine.is_main_process:
                _save(checkpoint, engine.unwrap_model(model), optimizer, step + 1, say)
    engine.free_memory()
    model.eval()


def _shares(batch: Batch, engine: Accelerator) -> list[Batch]:
    """This process's pieces of the batch; where there are fewer than processes and micro-batches some are shared."""
    cut, wanted = pieces(batch, engine), engine.num_processes * engine.gradient_accumulation_steps
    mine = (cut[i % len(cut)] for i in range(engine.process_index, wanted, engine.num_processes))
    return [{name: tensor.to(engine.device) for name, tensor in piece.items()} for piece in mine]


def _mean(shares: list[dict[str, Tensor]], engine: Accelerator) -> dict[str, float]:
    """Every part of the loss, averaged over the pieces of the batch of all processes, which all return the same."""
    total = torch.stack([torch.stack([part.float() for part in share.values()]) for share in shares]).mean(0)
    return dict(zip(shares[0], engine.reduce(total, reduction="mean").tolist(), strict=True))


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything a resumed run needs but the step: weights, masks (scores, ranges), optimizer moments, by name."""
    state = {f"model.{k}": v for k, v in model.state_dict(keep_vars=True).items()}
    masked = {name: m for name, m in model.named_modules() if isinstance(m, MaskedLinear)}
    state |= {f"buffer.{name}.{kind}": b for name, m in masked.items() for kind, b in m.named_buffers(recurse=False)}
    for index, moments in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in moments.items()}
    return state


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, say: Callable[[str], None]) -> None:
    """Atomically: a run stopped while saving, by whatever, keeps the checkpoint before. A disk that is full stops no run."""
    part = path.with_suffix(".part")
    tensors = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in _state(model, optimizer).items()}
    tensors["step"] = torch.tensor(step)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, {"sha256": _sha256(tensors)})
        _sync(part)
        part.replace(path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        say(plain(f"expected room to save the state of the training in {path}, found {error}. The training goes on."))
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _resume(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    engine: Accelerator,
    say: Callable[[str], None],
) -> int:
    """Put the saved state back, in place, all of it or nothing. Returns the step to go on from."""
    own, saved = _state(model, optimizer), dict[str, Tensor]()
    try:
        saved = _read(path, own, optimizer, steps)
    except FileNotFoundError:
        pass
    except (OSError, MemoryError) as error:  # which says nothing of what is in the file
        raise DataError(
            f"expected to read the saved state of this training, {path}, found {error or type(error).__name__}. Mend that, "
            "and run again; or remove the file, to begin at step 0."
        ) from None
    except Exception as error:  # of a damaged file a library may say anything
        if engine.is_main_process:
            say(plain(f"expected the state of this training in {path}, found {error}. It is discarded: from step 0 again."))
            with suppress(OSError):
                path.unlink(missing_ok=True)
    step = int(saved["step"]) if saved else 0
    if any(other != step for other in gather_object([step])):  # on a disk of its own each process has another file
        return 0
    with torch.no_grad():
        for key, tensor in own.items() if saved else ():
            tensor.copy_(saved[key])
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        if key.startswith("optimizer."):
            _, index, kind = key.split(".", 2)
            moments.setdefault(int(index), {})[kind] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def _read(path: Path, own: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, steps: int) -> dict[str, Tensor]:
    """A saved state. Raises ValueError, or what the library says, unless it is whole and of this training."""
    if path.is_dir():
        raise ValueError("a folder")
    with safe_open(path, "pt") as file:
        saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no dict
        if (file.metadata() or {}).get("sha256") != _sha256(saved):
            raise ValueError("bytes of another sha256 than were saved")
    wanted = {**own, "step": torch.tensor(0)}
    for index, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        if f"optimizer.{index}.step" in saved:  # Adam has moments of what ever had a gradient
            moments = {"step": torch.tensor(0.0), "exp_avg": p, "exp_avg_sq": p}
            wanted |= {f"optimizer.{index}.{kind}": tensor for kind, tensor in moments.items()}
    theirs, ours = ({k: (v.shape, v.dtype) for k, v in state.items()} for state in (saved, wanted))
    if other := sorted(k for k in theirs.keys() | ours.keys() if theirs.get(k) != ours.get(k)):
        raise ValueError(f"another model's or optimizer's, that differs in {len(other)} tensors, such as {other[0]}")
    if not 0 < int(saved["step"]) < steps:
        raise ValueError(f"step {int(saved['step'])} of a training of {steps}")
    return saved
