"""Where and how a stage computes: device, precision, processes."""

import os
from typing import Protocol

import torch
from accelerate import Accelerator

from pruneonce.errors import ConfigError

# What Accelerate's launcher sets for engines that cut a matrix into pieces, on which no mask could be chosen.
SHARDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")


class Compute(Protocol):
    """Where and how a stage computes; all of it can change bytes."""

    @property
    def seed(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def threads(self) -> int: ...


def accelerator(compute: Compute, *, micro_batches: int = 1) -> Accelerator:
    """The engine: device, mixed precision and processes. `auto` takes bf16 where the processor multiplies it.

    Raises ConfigError if Accelerate is configured for sharded parameters.
    """
    sharded = [name for name in SHARDED if os.environ.get(name, "").lower() in ("1", "true")]
    if sharded:
        raise ConfigError(
            f"expected whole parameters on every process (DDP), found {sharded[0]} set by the launcher: masks are chosen "
            "over whole matrices. Launch with torchrun, or answer no to sharding in `accelerate config`."
        )
    if compute.threads:
        torch.set_num_threads(compute.threads)
    torch.manual_seed(compute.seed)
    cpu = compute.device == "cpu" or not torch.accelerator.is_available()
    precision = compute.precision if compute.precision != "auto" else ("bf16" if has_bf16(cpu) else "no")
    return Accelerator(
        cpu=cpu,
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=micro_batches,
        step_scheduler_with_optimizer=False,
    )


def has_bf16(cpu: bool) -> bool:
    """Whether bf16 matrix products run in hardware here; emulated ones would be slower than fp32."""
    if not cpu:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
