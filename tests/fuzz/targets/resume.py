"""Training's own checkpoints, damaged: resumed from."""

import contextlib
import io
import json
import tempfile
from pathlib import Path
from random import Random

import torch
from accelerate import Accelerator
from safetensors.torch import load, save
from torch import nn

from pruneonce.training import loop
from tests.checkpoints import EverySteps
from tests.fuzz import damage
from tests.fuzz.case import Files

OUTS: tuple[str, ...] = ()
SECONDS = 20.0
SHARE = 8
STEPS = 3
NAME = "run-00000002.safetensors"
_made: dict[str, bytes] = {}


def _fit(folder: Path, *, every: int) -> None:
    torch.manual_seed(0)
    ids = torch.arange(8).reshape(2, 4)
    loop.fit(
        nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4)),
        lambda step: {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        lambda model, batch: {"loss": model(batch["input_ids"]).square().mean()},
        engine=Accelerator(cpu=True),
        learning_rate=lambda step: 0.1,
        steps=STEPS,
        weight_decay=0.0,
        clip_norm=1.0,
        seed=1,
        checkpoints=EverySteps(folder, name="run", steps=every),
    )


def start() -> None:
    """A run that stopped after its second step."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        _fit(Path(folder), every=2)
        _made["whole"] = (Path(folder) / NAME).read_bytes()


def make(draw: Random) -> Files:
    whole, kind = _made["whole"], draw.randrange(3)
    if kind == 0:
        return {NAME: damage.data(whole, draw)}
    if kind == 1:
        size = int.from_bytes(whole[:8], "little")
        header = damage.dumped(damage.document(json.loads(whole[8 : 8 + size]), draw))
        return {NAME: len(header).to_bytes(8, "little") + header + whole[8 + size :]}
    tensors = load(whole)
    for _ in range(draw.randint(1, 3)):
        key = draw.choice(sorted(tensors))  # their order is of the process
        choices = (
            None,
            torch.zeros(0),
            torch.tensor(2**40),
            torch.tensor(-5),
            torch.zeros(3, 3),
            tensors[key].double(),
            tensors[key].float() * float("nan"),
        )
        other = draw.choice(choices)
        tensors.pop(key)
        if other is not None:
            tensors[draw.choice((key, key, f"{key}x", "optimizer.x.step", "optimizer.9.step", "optimizer.0"))] = (
                other.contiguous()
            )
    return {NAME: save(tensors)}


def run(folder: Path) -> None:
    _fit(folder, every=1000)
