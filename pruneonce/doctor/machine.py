"""The processor's features and what they mean for compressed models, the cores and the memory that this process may use."""

import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from pruneonce.doctor.findings import NOTE, OK, Finding

GIB = 1 << 30
# Architecture -> (features that multiply 8-bit integers, features that multiply bf16), as Linux names them.
INT8 = {"x86_64": ("amx_int8", "avx512_vnni", "avx_vnni"), "aarch64": ("i8mm", "asimddp")}
BF16 = {"x86_64": ("amx_bf16", "avx512_bf16"), "aarch64": ("bf16",)}
LEAST_MEMORY = 4 * GIB  # a run of the default profile stays below it


def flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The features of the first processor; empty where Linux does not say."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    found = (line.partition(":") for line in text.splitlines())
    return next((set(value.split()) for key, _, value in found if key.strip() in ("flags", "Features")), set())


def processor(machine: str = platform.machine(), has: set[str] | None = None) -> Iterator[Finding]:
    """What int8 models and training get from the processor. machine: its architecture. has: its features."""
    has = flags() if has is None else has
    if not has:
        yield Finding("processor", NOTE, f"{machine}: the system does not list its features")
        return
    int8, bf16 = ([name for name in table.get(machine, ()) if name in has] for table in (INT8, BF16))
    if int8:
        yield Finding("int8", OK, f"{', '.join(int8)}: int8 models run with exact sums")
    elif machine == "x86_64" and "avx2" in has:
        yield Finding(
            "int8",
            NOTE,
            "AVX2 without VNNI: sums of 8-bit products saturate in ONNX Runtime",
            "Sums of pruneonce are exact. Other programs need weights of 7 bits: docs/deployment.md.",
        )
    else:
        yield Finding(
            "int8", NOTE, f"{machine} without instructions for int8: the int8 model may be slower than the float one"
        )
    if bf16:
        yield Finding("bf16", OK, f"{', '.join(bf16)}: `common.precision: auto` trains in bf16")
    else:
        yield Finding("bf16", NOTE, "no instructions: `common.precision: auto` trains in fp32, and other scores come out")


def cores() -> Iterator[Finding]:
    """The cores that this process may use, against those that programs count."""
    counted, allowed, quota = os.cpu_count() or 1, len(os.sched_getaffinity(0)), cpu_quota()
    usable = min(allowed, quota)
    if usable < counted:
        yield Finding(
            "cores",
            NOTE,
            f"{usable:g} of {counted} are for this process; ONNX Runtime starts a thread for each of {counted}",
            f"Give threads={max(1, math.floor(usable))} to pruneonce.load.",
        )
    else:
        yield Finding("cores", OK, f"{counted}")


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores that the control group of this process may use; inf without a limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        try:
            quota, period = ((root / f"cpu/cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return math.inf
    return float(quota) / float(period) if quota not in ("max", "-1") else math.inf


def memory(meminfo: Path = Path("/proc/meminfo"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[Finding]:
    """What is free of the memory that this process may use."""
    read = (line.split() for line in meminfo.read_text().splitlines())
    kib = {words[0].rstrip(":"): int(words[1]) for words in read if len(words) > 1}
    limit, used = memory_limit(root)
    total = min(kib["MemTotal"] * 1024, limit)
    free = min(kib.get("MemAvailable", kib["MemFree"]) * 1024, limit - used)
    said = f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free"
    if free < LEAST_MEMORY:
        yield Finding("memory", NOTE, said, "Training needs about 4 GiB: end other programs, or lower batch_size.")
    else:
        yield Finding("memory", OK, said)


def memory_limit(root: Path) -> tuple[float, float]:
    """(bytes that the control group may use, bytes that it cannot give back); inf and 0 without a limit."""
    for most, now in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            limit = (root / most).read_text().strip()
            if limit == "max":
                return math.inf, 0.0
            return float(limit), float((root / now).read_text()) - _cached(root / now)
        except (OSError, ValueError):
            continue
    return math.inf, 0.0


def _cached(used: Path) -> float:
    """Bytes of files that were read and are used no more: the system counts them, and gives them to whoever asks."""
    try:
        counts = dict(line.split() for line in used.with_name("memory.stat").read_text().splitlines())
        return float(counts.get("total_inactive_file", counts.get("inactive_file", 0)))  # version 1 has both
    except (OSError, ValueError):
        return 0.0
