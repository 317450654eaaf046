"""The state of a training on the disk: written whole, checked, and put back all or not at all.

A state that is damaged or of another training is discarded with a line, and the training begins at step 0.
"""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
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

    def save(self, path: Path, step: int) -> None:
        """Write the state of `step` steps, whole or not at all. A full disk is told, and the training goes on."""
        part = path.with_suffix(".part")
        tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in self.tensors().items()}
        tensors["step"] = torch.tensor(step)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, {"sha256": _sha256(tensors)})
            sync(part)
            part.replace(path)
            sync(path.parent)
        except (OSError, SafetensorError) as error:
            self.say(plain(f"expected room to save the state in {path}, found {error}. The training goes on."))
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def resume(self, path: Path, steps: int) -> int:
        """Put the saved state back, in place, all of it or nothing. Returns the step to go on from.

        steps: of the whole training. Raises DataError if the disk does not let the file be read.
        """
        saved = self._saved(path, steps)
        step = int(saved["step"]) if saved else 0
        steps_read = gather_object([step])  # processes on other machines may have another file
        if not saved or any(other != step for other in steps_read):
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
        return step

    def _saved(self, path: Path, steps: int) -> dict[str, Tensor]:
        """Return the saved state; empty if there is none, or if it was discarded."""
        try:
            return self._read(path, steps)
        except FileNotFoundError:
            return {}
        except (OSError, MemoryError) as error:  # these say nothing about the bytes of the file
            raise DataError(
                f"expected to read the saved state of this training, {path}, found {error or type(error).__name__}. Repair "
                "that and run again; or remove the file, to begin at step 0."
            ) from None
        except Exception as error:  # a library may raise anything for a damaged file
            if self.engine.is_main_process:
                line = f"expected the state of this training in {path}, found {error}. It is discarded: from step 0 again."
                self.say(plain(line))
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            return {}

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
