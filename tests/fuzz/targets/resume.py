"""Training's own saved states, damaged: resumed from. The end of the run is the same, to the bit."""

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

from pruneonce.training import loop, resume
from tests.checkpoints import EverySteps
from tests.fuzz import damage
from tests.fuzz.case import Files

OUTS: tuple[str, ...] = ()
SECONDS = 20.0
SHARE = 6
STEPS = 3
OLDER, NAME = "run-00000001.safetensors", "run-00000002.safetensors"
_made: dict[str, bytes] = {}
_end: dict[str, torch.Tensor] = {}


def _fit(folder: Path, *, every: int) -> dict[str, torch.Tensor]:
    """The weights at the end."""
    torch.manual_seed(0)
    ids = torch.arange(8).reshape(2, 4)
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4))
    loop.fit(
        model,
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
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def start() -> None:
    """The states of a run after its first and its second step; the weights at its end."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        _end.update(_fit(Path(folder), every=1))
        _made.update({name: (Path(folder) / name).read_bytes() for name in (OLDER, NAME)})


def make(draw: Random) -> Files:
    """The newer state damaged; the older one whole, damaged, or not there."""
    anew = draw.random() < 0.25
    files = {NAME: _damaged(_made[NAME], draw, anew=anew), "anew.json": json.dumps(anew).encode()}
    if draw.random() < 0.6:
        files[OLDER] = _made[OLDER] if draw.random() < 0.7 else _damaged(_made[OLDER], draw, anew=anew)
    return files


def _damaged(whole: bytes, draw: Random, *, anew: bool) -> bytes:
    """anew: its tensors are changed, and the checksum is made to fit them. Nobody can see that."""
    kind = 2 if anew else draw.randrange(3)
    if kind == 0:
        return damage.data(whole, draw)
    if kind == 1:
        size = int.from_bytes(whole[:8], "little")
        header = damage.dumped(damage.document(json.loads(whole[8 : 8 + size]), draw))
        return len(header).to_bytes(8, "little") + header + whole[8 + size :]
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
    return save(tensors, {"sha256": resume._sha256(tensors if anew else load(whole))})


def run(folder: Path) -> None:
    """A state whose checksum is that of other tensors is not taken: the run ends with the same bits."""
    weights = _fit(folder, every=1000)
    if not json.loads(Path("anew.json").read_text()):
        for name, tensor in weights.items():
            assert torch.equal(tensor, _end[name]), "another result"
