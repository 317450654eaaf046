"""ONNX Runtime: sessions, logits, what the optimiser makes of a graph, how long an answer takes."""

from __future__ import annotations

import bisect
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from tqdm import tqdm

from pruneonce.errors import ModelError, PackError

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

TOO_LONG = ("broadcast", "out of data bounds")  # in what ONNX Runtime says of a text that is; of other inputs too
WORD = 2  # an id that every vocabulary has; not 0 or 1, by which some models number padding
TURN = 10  # calls of one session before the next one has its turn
PAUSE_SECONDS = 0.2


class Session(ort.InferenceSession):
    """ONNX Runtime's session, whose errors are ours. Raises PackError if the file cannot be loaded."""

    def __init__(self, *args: Any, **kwargs: Any):
        try:
            super().__init__(*args, **kwargs)
        except Exception as error:  # ONNX Runtime's have no base of their own
            raise PackError(
                f"expected a model that ONNX Runtime {ort.__version__} loads, found: {error}. Get the file again, whole, or "
                "another ONNX Runtime."
            ) from None

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        """As ONNX Runtime has it. Raises ModelError for inputs that the model cannot read."""
        try:
            return super().run(output_names, input_feed, run_options)
        except Exception as error:
            raise ModelError(self._explained(error, input_feed)) from None

    def _explained(self, error: Exception, given: Mapping[str, Any]) -> str:
        """What is wrong with the inputs, if it can be told, else what ONNX Runtime said."""
        shapes = {name: np.shape(rows) for name, rows in given.items()}
        one = set(shapes.values())
        length = next(iter(one))[-1] if len(one) == 1 and all(len(shape) == 2 for shape in one) else 0
        if length and any(words in str(error) for words in TOO_LONG) and (most := self._positions(length)) < length:
            return f"expected texts of at most {most} tokens, for which the model has positions, found {length}. Cut them."
        return f"expected inputs that the model can read, found {shapes}: {error}"

    def _positions(self, length: int) -> int:
        """The most tokens of a text, up to `length`, that it answers. Tried out: a file does not say it."""

        def refuses(tokens: int) -> bool:
            row = np.full((1, tokens), WORD, np.int64)
            try:
                super(Session, self).run(None, {wanted.name: row for wanted in self.get_inputs()})
            except Exception:
                return True
            return False

        return bisect.bisect_left(range(1, length + 1), True, key=refuses)


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
) -> Session:
    """A CPU session with `threads` threads inside an operator and one across, all optimisations on.

    model: an ONNX file, or the bytes of one. threads: 0 for as many as cores.
    entries: further session options by ONNX Runtime's names, such as `session.x64quantprecision`.
    Raises PackError if it cannot be loaded.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # what fails is raised, and said once
    if save_optimised is not None:
        options.optimized_model_filepath = str(save_optimised)
    if save_profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(save_profile)
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    file = model if isinstance(model, bytes) else str(model)
    # There is one provider, so none to fall back on, which ONNX Runtime announces on standard output.
    return Session(file, options, providers=["CPUExecutionProvider"], enable_fallback=0)


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
