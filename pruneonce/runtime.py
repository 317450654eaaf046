"""ONNX Runtime: sessions, logits, what the optimiser makes of a graph, how long an answer takes."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
from tqdm import tqdm

if TYPE_CHECKING:  # a session for what ships needs no torch
    from pruneonce.batch import Batch

INTEGER_KERNELS = (
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "QLinearMatMul",
    "QGemm",
    "QAttention",
)

TURN = 10  # calls of one session before the next one has its turn
PAUSE_SECONDS = 0.2


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
    """float[batch, ...] for a batch of what the graph reads; several outputs are stacked behind the batch."""
    found = running.run(None, feeds(running, batch))
    return found[0] if len(found) == 1 else np.stack(found, axis=1)


def feeds(running: ort.InferenceSession, batch: Batch) -> dict[str, np.ndarray]:
    """Of a batch what the graph reads, by name."""
    return {wanted.name: batch[wanted.name].numpy() for wanted in running.get_inputs()}


def answers(running: ort.InferenceSession, batches: Iterable[Batch], *, name: str) -> Iterator[tuple[Batch, np.ndarray]]:
    """Every batch with its logits, under a progress bar."""
    with tqdm(desc=name, unit="text", mininterval=1.0) as bar:
        for batch in batches:
            yield batch, logits(running, batch)
            bar.update(len(batch["input_ids"]))


def latencies_ms(
    sessions: Mapping[str, ort.InferenceSession], batch: Batch, *, warmup_runs: int, runs: int
) -> dict[str, dict[str, float]]:
    """Wall time of one call in ms, by name: median and 95th percentile over `runs` calls after `warmup_runs`.

    Sessions take turns of TURN calls, so that a machine that slows down slows all of them; before each turn is a pause, for
    the threads of the session before still spin: measured, calls took twice as long for the first 80 ms.
    """
    given = {name: feeds(running, batch) for name, running in sessions.items()}
    for name, running in sessions.items():
        _calls_ms(running, given[name], warmup_runs)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for done in range(0, runs, TURN):
        for name, running in sessions.items():
            time.sleep(PAUSE_SECONDS)
            times[name] += _calls_ms(running, given[name], min(TURN, runs - done))
    return {
        name: {"median_ms": float(np.median(found)), "p95_ms": float(np.percentile(found, 95))}
        for name, found in times.items()
    }


def _calls_ms(running: ort.InferenceSession, given: dict[str, np.ndarray], calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        running.run(None, given)
        times.append(1e3 * (time.perf_counter() - began))
    return times


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
