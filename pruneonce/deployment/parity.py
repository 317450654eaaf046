"""ONNX Runtime against PyTorch on the same inputs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pruneonce.batch import Batch, inputs
from pruneonce.batch import logits as stacked
from pruneonce.deployment import runtime
from pruneonce.errors import ExportError

EXACT_SUMS = {"session.x64quantprecision": "1"}  # no 16-bit sums on processors without VNNI, slower; others ignore it


@torch.inference_mode()
def logits(model: nn.Module, batches: Iterable[Batch], outputs: Sequence[str] = ("logits",)) -> list[np.ndarray]:
    """float[batch, ...] of every batch, in PyTorch; several outputs are stacked behind the batch."""
    return [stacked(model(**inputs(batch)), outputs).float().numpy() for batch in batches]


def largest(logits: np.ndarray, batch: Batch) -> np.ndarray:
    """The decision of a classifier: the class with the largest logit."""
    return logits.argmax(-1)


def parity(
    trained: Sequence[np.ndarray],
    path: Path,
    batches: Sequence[Batch],
    *,
    decide: Callable[[np.ndarray, Batch], np.ndarray] = largest,
    entries: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """ONNX Runtime against PyTorch on the same inputs: largest difference of a logit, and share of equal decisions.

    trained: what `logits` says. decide: logits of a batch -> its decisions. entries: session options, such as `EXACT_SUMS`.
    """
    session = runtime.session(path, threads=torch.get_num_threads(), entries=entries)
    differences, scale, rows, equal = 0.0, 0.0, 0, []
    for ours, batch in zip(trained, batches, strict=True):
        theirs = runtime.logits(session, batch)
        differences = float(np.maximum(differences, np.abs(ours - theirs).max()))  # not max(): nan is to stay
        scale = float(np.maximum(scale, np.abs(ours).max()))
        equal.append(decide(ours, batch) == decide(theirs, batch))
        rows += len(ours)
    same = float(np.concatenate(equal).mean())
    return {"max_difference": differences, "max_logit": scale, "same_decision": same, "rows": rows}


def check_parity(found: Mapping[str, float], *, max_difference: float, same_decision: float) -> None:
    """Raises ExportError if the two disagree by more than the tolerance.

    max_difference: of logits, as a fraction of the largest one.
    """
    near = found["max_difference"] <= max_difference * found["max_logit"]  # False where a logit is nan
    if not near or found["same_decision"] < same_decision:
        raise ExportError(
            f"expected ONNX Runtime within {max_difference:g} of the largest logit and {same_decision:.2%} equal decisions, "
            f"found a difference of {found['max_difference']:.3g} with logits up to {found['max_logit']:.3g} and "
            f"{found['same_decision']:.2%} equal. Logits near 0 are those of a model that has learned nothing; "
            "one that has wants more steps of quantization, or a wider tolerance."
        )
