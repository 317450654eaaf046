"""Where and how a stage computes: device, precision, processes."""

import os
from typing import Protocol

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import distributed

from pruneonce.errors import ConfigError

# Accelerate's launcher sets these for engines that divide a matrix among processes. No mask can be chosen on a part of it.
SHARDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")


class Compute(Protocol):
    """Where and how a stage computes. Each of these can change bytes. threads: 0 for as many as cores."""

    @property
    def seed(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def threads(self) -> int: ...


def accelerator(compute: Compute, *, micro_batches: int = 1) -> Accelerator:
    """Return the engine of a stage: device, mixed precision and processes. Sets torch's threads and seed.

    precision `auto` is bf16 where the hardware multiplies it, else fp32.
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
    precision = compute.precision
    if precision == "auto":
        precision = "bf16" if (cpu_has_bf16() if cpu else gpu_has_bf16()) else "fp32"
    return Accelerator(
        cpu=cpu,
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=micro_batches,
        step_scheduler_with_optimizer=False,
        # Masks and ranges are buffers, and every process computes the same ones: nothing is to be sent before each step.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def cpu_has_bf16() -> bool:
    """Return whether this processor multiplies bf16 matrices in hardware. Emulated products are slower than fp32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def gpu_has_bf16() -> bool:
    """Return whether the GPU multiplies bf16 matrices in hardware."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def is_first_process() -> bool:
    """Return whether this process is the only one, or the one of several that writes files."""
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
