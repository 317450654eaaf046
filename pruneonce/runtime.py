"""ONNX Runtime: sessions, logits, what the optimiser makes of a graph, how long an answer takes."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
from tqdm import tqdm

if TYPE_CHECKING:  # a session for what ships needs no torch
    from pruneonce.training import Batch

INTEGER_KERNELS = (
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "QLinearMatMul",
    "QGemm",
    "QAttention",
)


def is_integer(kernel: str) -> bool:
    """Whether an operator of the optimised graph multiplies integers."""
    return kernel in INTEGER_KERNELS


def session(
    model: Path | bytes,
    *,
    threads: int,
    save_optimised: Path | None = None,
    save_profile: Path | None = None,
    entries: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    """A CPU session with `threads` threads inside an operator and one across, all optimisations on.

    model: an ONNX file, or the bytes of one. threads: 0 for as many as cores.
    entries: further session options by ONNX Runtime's names, such as `session.x64quantprecision`.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if save_optimised is not None:
        options.optimized_model_filepath = str(save_optimised)
    if save_profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(save_profile)
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
    )


def optimised(path: Path) -> bytes:
    """The graph as ONNX Runtime runs it, serialized."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "optimised.onnx"
        session(path, threads=1, save_optimised=saved)
        return saved.read_bytes()


def logits(running: ort.InferenceSession, batch: Batch) -> np.ndarray:
    """float[batch, classes] for a batch of input_ids and attention_mask."""
    return running.run(["logits"], feeds(running, batch))[0]


def feeds(running: ort.InferenceSession, batch: Batch) -> dict[str, np.ndarray]:
    """Of a batch what the graph reads, by name."""
    return {wanted.name: batch[wanted.name].numpy() for wanted in running.get_inputs()}


def count_right(running: ort.InferenceSession, batches: Iterable[Batch], *, name: str) -> tuple[int, int]:
    """(rows whose largest logit is the label, rows)."""
    right = rows = 0
    with tqdm(desc=name, unit="text", mininterval=1.0) as bar:
        for batch in batches:
            right += int((logits(running, batch).argmax(-1) == batch["labels"].numpy()).sum())
            rows += len(batch["labels"])
            bar.update(len(batch["labels"]))
    return right, rows


def latency_ms(running: ort.InferenceSession, batch: Batch, *, warmup_runs: int, runs: int) -> dict[str, float]:
    """Wall time of one call in ms: median and 95th percentile over `runs` calls after `warmup_runs`."""
    given = feeds(running, batch)
    times = []
    for run in range(warmup_runs + runs):
        began = time.perf_counter()
        running.run(["logits"], given)
        if run >= warmup_runs:
            times.append(1e3 * (time.perf_counter() - began))
    return {"median_ms": float(np.median(times)), "p95_ms": float(np.percentile(times, 95))}


def operator_times(path: Path, batch: Batch, *, threads: int, runs: int) -> dict[str, float]:
    """Where the time of one call goes: op type -> ms spent in its kernels, the largest first; mean of `runs` calls."""
    spent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        running = session(path, threads=threads, save_profile=Path(folder) / "profile")
        for _ in range(2 * runs):  # the first half warms up
            logits(running, batch)
        events = json.loads(Path(running.end_profiling()).read_text())
    calls = [event for event in events if event["name"] == "model_run"]
    for event in events:
        if event["name"].endswith("_kernel_time") and event["ts"] >= calls[runs]["ts"]:
            spent[event["args"]["op_name"]] += event["dur"]
    return {op: microseconds / 1e3 / runs for op, microseconds in spent.most_common()}
