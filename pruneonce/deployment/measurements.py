"""Measure exported files in ONNX Runtime: the answers to a test split, the latency, the time of each operator."""

import gc
import json
import tempfile
import time
import timeit
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from tqdm import tqdm

from pruneonce.batch import Batch
from pruneonce.deployment.runtime import Session, feeds, logits

PERCENTILES = {"median_ms": 50, "p90_ms": 90, "p95_ms": 95, "p99_ms": 99}
Answer = tuple[Batch, np.ndarray]  # a batch and its logits


def answers(running: InferenceSession, batches: Iterable[Batch], *, name: str) -> Iterator[Answer]:
    """Every batch with its logits, under a progress bar."""
    with tqdm(desc=name, unit="text", mininterval=1.0) as bar:
        for batch in batches:
            yield batch, logits(running, batch)
            bar.update(len(batch["input_ids"]))


def latencies_ms(
    sessions: Mapping[str, InferenceSession],
    batch: Batch,
    *,
    warmup_runs: int,
    runs: int,
    turn_runs: int = 10,
    pause_seconds: float = 0.2,
) -> dict[str, dict[str, float]]:
    """Wall time of one call in ms, by session: median, 90th, 95th and 99th percentile of `runs` calls after `warmup_runs`.

    Sessions take turns of `turn_runs` calls, so a machine that slows down slows all of them. After a call, the threads of
    a session spin for a while and slow other sessions. So every turn begins with a pause.
    """
    inputs = {name: feeds(running, batch) for name, running in sessions.items()}
    for name, running in sessions.items():
        _calls_ms(running, inputs[name], warmup_runs)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for done in range(0, runs, turn_runs):
        for name, running in sessions.items():
            time.sleep(pause_seconds)
            times[name] += _calls_ms(running, inputs[name], min(turn_runs, runs - done))
    return {name: {key: float(np.percentile(calls, p)) for key, p in PERCENTILES.items()} for name, calls in times.items()}


def _calls_ms(running: InferenceSession, inputs: dict[str, np.ndarray], calls: int) -> list[float]:
    # A program that calls the model collects garbage as well: timeit would not.
    seconds = timeit.repeat(lambda: running.run(None, inputs), gc.enable, time.perf_counter, repeat=calls, number=1)
    return [1e3 * value for value in seconds]


def operator_times(load: Callable[..., Session], batch: Batch, *, runs: int) -> dict[str, float]:
    """Op type -> ms in its kernels for one call, largest first.

    load: `runtime.session` of a model, which takes `save_profile` here.
    The mean over `runs` calls, after the same number of calls to warm up.
    """
    spent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        running = load(save_profile=Path(folder) / "profile")
        for _ in range(2 * runs):
            logits(running, batch)
        events = json.loads(Path(running.end_profiling()).read_text())
    calls = [event for event in events if event["name"] == "model_run"]
    for event in events:
        if event["name"].endswith("_kernel_time") and event["ts"] >= calls[runs]["ts"]:
            spent[event["args"]["op_name"]] += event["dur"]
    return {op: microseconds / 1e3 / runs for op, microseconds in spent.most_common()}
