"""The state of a training on the disk: written whole, checked, and put back all or not at all.

A state that is damaged or of another training is discarded with a line. Then the one before it is taken, or the training
begins at step 0.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pruneonce.errors import DataError, plain
from pruneonce.files import sync
from pruneonce.sparsity.masks import MaskedLinear


@dataclass(frozen=True)
class State:
    """Everything that a resumed run needs besides its step: weights, masks, scores, ranges, optimizer moments.

    model, optimizer: before the engine wraps them. say: prints a line.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    engine: Accelerator
    say: Callable[[str], None]

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name; weights and buffers are those of the model itself."""
        state = {f"model.{name}": tensor for name, tensor in self.model.state_dict(keep_vars=True).items()}
        masked = {name: m for name, m in self.model.named_modules() if isinstance(m, MaskedLinear)}
        for name, linear in masked.items():
            state |= {f"buffer.{name}.{kind}": buffer for kind, buffer in linear.named_buffers(recurse=False)}
        for index, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{kind}": torch.as_tensor(moment) for kind, moment in moments.items()}
        return state

    def save(self, path: Path, step: int) -> bool:
        """Write the state of `step` steps, whole or not at all; returns whether it was written.

        A full disk is told, and the training goes on.
        """
        part = path.with_suffix(".part")
        tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in self.tensors().items()}
        tensors["step"] = torch.tensor(step)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, {"sha256": _sha256(tensors)})
            sync(part)
            part.replace(path)
            sync(path.parent)
            return True
        except (OSError, SafetensorError) as error:
            self.say(plain(f"expected room to save a state in {path.parent}, found {error}. The training goes on."))
            with suppress(OSError):
                part.unlink(missing_ok=True)
            return False

    def resume(self, paths: Sequence[Path], steps: int) -> int:
        """Put the first of these saved states that is whole back, in place, all of it or nothing.

        steps: of the whole training. Returns the step to go on from. Raises DataError if the disk does not let a file be
        read. The first process chooses the file; if another process cannot read that one, all begin at step 0.
        """
        saved, path = self._first_whole(paths, steps) if self.engine.is_main_process else ({}, None)
        (path,) = broadcast_object_list([path])
        if path and not self.engine.is_main_process:
            with suppress(Exception):  # on another machine, the file may be missing
                saved = self._read(path, steps)
        if not all(gather_object([bool(saved)])):
            return 0
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(saved[name])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in saved.items():
            if name.startswith("optimizer."):
                _, index, kind = name.split(".", 2)
                moments.setdefault(int(index), {})[kind] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        return int(saved["step"])

    def _first_whole(self, paths: Sequence[Path], steps: int) -> tuple[dict[str, Tensor], Path | None]:
        """Return the first state that is whole, and its file; those before it are discarded. Empty if there is none."""
        bad: dict[Path, object] = {}
        saved, whole = {}, None
        for path in paths:
            try:
                saved, whole = self._read(path, steps), path
                break
            except FileNotFoundError:
                continue
            except (OSError, MemoryError) as error:  # these say nothing about the bytes of the file
                raise DataError(
                    f"expected to read the saved state of this training, {path}, found {error or type(error).__name__}. "
                    "Repair that and run again; or remove the file, to begin before it."
                ) from None
            except Exception as error:  # a library may raise anything for a damaged file
                bad[path] = error
        start = int(saved["step"]) if saved else 0
        for path, damage in bad.items():
            line = (
                f"expected the state of this training in {path}, found {damage}. It is discarded: from step {start} again."
            )
            self.say(plain(line))
            with suppress(OSError):
                path.unlink(missing_ok=True)
        return saved, whole

    def _read(self, path: Path, steps: int) -> dict[str, Tensor]:
        """Return a saved state. Raises ValueError, or an error of the library, unless it is whole and of this training."""
        if path.is_dir():
            raise ValueError("a folder")
        with safe_open(path, "pt") as file:
            saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no dict
            if (file.metadata() or {}).get("sha256") != _sha256(saved):
                raise ValueError("bytes of another sha256 than were saved")
        expected = {**self.tensors(), "step": torch.tensor(0)}
        for index, p in enumerate(p for group in self.optimizer.param_groups for p in group["params"]):
            if f"optimizer.{index}.step" in saved:  # Adam has moments of those that ever had a gradient
                moments = {"step": torch.tensor(0.0), "exp_avg": p, "exp_avg_sq": p}
                expected |= {f"optimizer.{index}.{kind}": tensor for kind, tensor in moments.items()}
        found, own = ({k: (v.shape, v.dtype) for k, v in state.items()} for state in (saved, expected))
        if other := sorted(name for name in found.keys() | own.keys() if found.get(name) != own.get(name)):
            raise ValueError(f"another model's or optimizer's, that differs in {len(other)} tensors, such as {other[0]}")
        if not 0 < int(saved["step"]) < steps:
            raise ValueError(f"step {int(saved['step'])} of a training of {steps}")
        return saved


def _sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
