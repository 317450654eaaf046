"""Parity: the logits and decisions of ONNX Runtime against those of PyTorch, on the same inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pruneonce.batch import Batch, inputs, logits
from pruneonce.deployment import runtime
from pruneonce.deployment.exact_sums import exact
from pruneonce.errors import ExportError

Read = Callable[[np.ndarray, Batch], np.ndarray]  # logits of a batch -> what is read of them


def largest(logits: np.ndarray, batch: Batch) -> np.ndarray:
    """The decision of a classifier: the class with the largest logit."""
    return logits.argmax(-1)


def whole(logits: np.ndarray, batch: Batch) -> np.ndarray:
    """All logits."""
    return logits


@dataclass(frozen=True)
class Texts:
    """Batches on which a file is compared with its model.

    outputs: of the model, by name; several are stacked behind the batch axis. decide: the decisions of a batch.
    compared: the logits that must be near.
    """

    batches: Sequence[Batch]
    outputs: Sequence[str] = ("logits",)
    decide: Read = largest
    compared: Read = whole


@dataclass(frozen=True)
class Reference:
    """The logits that are right, float[batch, ...] of each batch of the texts: those of a PyTorch model, or of a session."""

    texts: Texts
    logits: Sequence[np.ndarray]


@torch.inference_mode()
def reference(model: nn.Module, texts: Texts) -> Reference:
    """The model's logits for the texts."""
    return Reference(texts, [logits(model(**inputs(batch)), texts.outputs).float().numpy() for batch in texts.batches])


def parity(expected: Reference, path: Path) -> dict[str, float]:
    """The `differences` of an ONNX file from its model. Sums of integers are exact, as wherever pruneonce runs a file."""
    return _measured(expected, exact(path))


def parity_elsewhere(expected: Reference, path: Path) -> dict[str, float]:
    """The same as any other program runs the file: on processors without VNNI, sums may saturate (exact_sums.py)."""
    return _measured(expected, path)


def _measured(expected: Reference, model: Path | bytes) -> dict[str, float]:
    session = runtime.session(model, threads=torch.get_num_threads())
    return differences(expected, [runtime.logits(session, batch) for batch in expected.texts.batches])


def differences(expected: Reference, found: Sequence[np.ndarray]) -> dict[str, float]:
    """How far `found` is from the logits that are right. found: as `expected.logits`.

    relative_error: |difference| / |expected| of all logits as one vector. A fault of the file moves every text; a value
    that falls to the other side of a rounding moves one. The largest difference is of the worst text: it is only reported.
    """
    texts = expected.texts

    def read(how: Read, answers: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([how(answer, batch).ravel() for answer, batch in zip(answers, texts.batches, strict=True)])

    right, given = (read(texts.compared, answers).astype(np.float64) for answers in (expected.logits, found))
    return {
        "relative_error": float(np.linalg.norm(given - right) / max(np.linalg.norm(right), np.finfo(np.float64).tiny)),
        "max_difference": float(np.abs(given - right).max(initial=0.0)),  # nan stays nan; no batch may have a word at all
        "max_logit": float(np.abs(right).max(initial=0.0)),
        "same_decision": float((read(texts.decide, expected.logits) == read(texts.decide, found)).mean()),
        "rows": sum(map(len, expected.logits)),
    }


def check_parity(measured: Mapping[str, float], *, relative_error: float, same_decision: float) -> None:
    """Raises ExportError if ONNX Runtime and PyTorch differ by more than the tolerance.

    relative_error: the largest. same_decision: least share of equal decisions, in [0, 1].
    """
    _check(measured, "ONNX Runtime", relative_error, same_decision, "more steps of quantization, or a wider tolerance")


def check_sparse_kernels(measured: Mapping[str, float], *, relative_error: float, same_decision: float) -> None:
    """The same of the sparse kernels and ONNX Runtime's own, for one int8 file."""
    advice = "build them anew with `python -m kernels.build`, or a wider tolerance in `evaluate` of params.yaml"
    _check(measured, "the sparse kernels", relative_error, same_decision, advice)


def _check(measured: Mapping[str, float], what: str, relative_error: float, same_decision: float, advice: str) -> None:
    near = measured["relative_error"] <= relative_error  # False where a logit is nan
    if not near or measured["same_decision"] < same_decision:
        raise ExportError(
            f"expected {what} within a relative error of {relative_error:g} and {same_decision:.2%} equal decisions, found "
            f"an error of {measured['relative_error']:.3g} and {measured['same_decision']:.2%} equal (largest difference "
            f"{measured['max_difference']:.3g}, largest logit {measured['max_logit']:.3g}). Logits near 0: the model has "
            f"learned nothing, train it longer. Otherwise: {advice}."
        )
