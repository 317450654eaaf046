"""Run an ONNX file in ONNX Runtime: sessions, and the logits of a batch. Needs onnxruntime and numpy, no torch."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from pruneonce.errors import KernelsError, ModelError, PackError

if TYPE_CHECKING:  # importing it would need torch
    from pruneonce.batch import Batch

TOO_LONG = ("broadcast", "out of data bounds")  # in ONNX Runtime's message for a text that is too long, and in others
ANY_TOKEN = 2  # an id in every vocabulary; not 0 or 1, which some models use for padding
READABLE = {"attention_mask": 1, "token_type_ids": 0}  # input -> a value that every model reads; of others ANY_TOKEN


class Session(ort.InferenceSession):
    """ONNX Runtime's session with this library's errors. Raises PackError if the file cannot be loaded."""

    def __init__(self, *args: Any, **kwargs: Any):
        try:
            super().__init__(*args, **kwargs)
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise PackError(
                f"expected a model that ONNX Runtime {ort.__version__} loads, found: {error}. Get the file again, or "
                "another ONNX Runtime."
            ) from None
        self._model_bytes = None  # ONNX Runtime keeps the file's bytes, to load it anew for other providers: there are none

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        """As in ONNX Runtime. Raises ModelError for inputs that the model cannot read."""
        try:
            return super().run(output_names, input_feed, run_options)
        except Exception as error:
            raise ModelError(self._message(error, input_feed)) from None

    def _message(self, error: Exception, feeds: Mapping[str, Any]) -> str:
        """The longest text, if the inputs are longer than that; otherwise their shapes and ONNX Runtime's message."""
        shapes = {name: np.shape(rows) for name, rows in feeds.items()}
        one = set(shapes.values())
        length = next(iter(one))[-1] if len(one) == 1 and all(len(shape) == 2 for shape in one) else 0
        # 0: not even one token of those that are tried is read, so nothing is known of the length.
        if any(words in str(error) for words in TOO_LONG) and 0 < (most := self._positions(length)) < length:
            return f"expected texts of at most {most} tokens, for which the model has positions, found {length}. Cut them."
        return f"expected inputs that the model can read, found {shapes}: {error}"

    def _positions(self, length: int) -> int:
        """The longest text, up to `length` tokens, that the model answers. Found by trying: the file does not hold it."""

        def refuses(tokens: int) -> bool:
            names = [node.name for node in self.get_inputs()]
            try:
                super(Session, self).run(
                    None, {name: np.full((1, tokens), READABLE.get(name, ANY_TOKEN), np.int64) for name in names}
                )
            except Exception:
                return True
            return False

        return bisect.bisect_left(range(1, length + 1), True, key=refuses)


def session(
    model: Path | bytes,
    *,
    threads: int,
    save_optimised: Path | None = None,
    save_profile: Path | None = None,
    entries: Mapping[str, str] | None = None,
    operators: Path | None = None,
) -> Session:
    """A CPU session with all optimisations.

    Raises PackError if the model cannot be loaded, KernelsError if the operators cannot.

    model: an ONNX file, or its bytes.
    threads: of one operator, 0 for one a core. Operators run one by one.
    save_optimised: file for the optimised graph.
    save_profile: prefix of the file for the profile.
    entries: further session options by ONNX Runtime's names. Example: `session.x64quantprecision`.
    operators: a library with further operators.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # errors are raised, so they need no log line
    if save_optimised is not None:
        options.optimized_model_filepath = str(save_optimised)
    if save_profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(save_profile)
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    if operators is not None:
        try:
            options.register_custom_ops_library(str(operators))
        except Exception as error:
            raise KernelsError(f"expected operators for ONNX Runtime {ort.__version__}, found: {error}") from None
    file = model if isinstance(model, bytes) else str(model)
    # There is one provider, so no fallback: ONNX Runtime would print a line about it.
    return Session(file, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def logits(running: ort.InferenceSession, batch: Batch) -> np.ndarray:
    """float[batch, ...] of a batch; several outputs are stacked behind the batch axis, as in `batch.logits`."""
    outputs = running.run(None, feeds(running, batch))
    return outputs[0] if len(outputs) == 1 else np.stack(outputs, axis=1)


def feeds(running: ort.InferenceSession, batch: Batch) -> dict[str, np.ndarray]:
    """The tensors of a batch that the graph reads, by name."""
    return {node.name: batch[node.name].numpy() for node in running.get_inputs()}
