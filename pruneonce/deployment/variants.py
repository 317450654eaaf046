"""Export a variant of a task model, in float or in int8, and check the file against the model."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pruneonce import quantization
from pruneonce.batch import inputs
from pruneonce.deployment import inspect, parity
from pruneonce.deployment.audit import Audit, check_integer
from pruneonce.deployment.export import to_onnx
from pruneonce.deployment.weight_names import name_weights


def export_float(
    model: nn.Module, linears: Mapping[str, nn.Linear], path: Path, texts: parity.Texts, *, relative_error: float
) -> dict[str, Any]:
    """Write a float model as ONNX; return the parity and the audit of the file.

    linears: the prunable ones, by layer name.
    relative_error: of the logits, the largest.
    Raises ExportError for a larger error or another decision, PatternBroken if a zero is lost.
    """
    weights = {layer: linear.weight.detach().numpy() for layer, linear in linears.items()}
    _write(model, weights, path, texts)
    measured = parity.parity(parity.reference(model, texts), path)
    parity.check_parity(measured, relative_error=relative_error, same_decision=1.0)
    inspect.check_zeros(path, {layer: weight == 0 for layer, weight in weights.items()})
    audit = Audit(path)
    return {"parity": measured, **audit.summary(audit.kernels(weights)), "embedding_errors": {}}


def export_int8(
    model: nn.Module,
    path: Path,
    texts: parity.Texts,
    *,
    quantize_embeddings: Callable[[Path], dict[str, float]],
    relative_error: float,
    same_decision: float,
) -> dict[str, Any]:
    """Convert the fake-quantized linears to int8, in place, and write the model as ONNX.

    Returns the parity and the audit of the file: the parity in any program, and with exact sums, as pruneonce runs it. They
    differ on processors without VNNI alone (exact_sums.py).

    quantize_embeddings: rewrites the file, returns table -> relative error. Parity is measured after it.
    relative_error: of the logits, the largest.
    same_decision: least share of equal decisions, in [0, 1].
    Raises ExportError for too large an error, or a product that is not on integers. Raises PatternBroken if a zero
    is lost.
    """
    pattern = {
        layer: (linear.effective_weight == 0).numpy() for layer, linear in quantization.quantized_linears(model).items()
    }
    weights = {layer: linear.weight.numpy().T for layer, linear in quantization.to_int8(model).items()}
    _write(model, weights, path, texts)
    errors = quantize_embeddings(path)
    reference = parity.reference(model, texts)
    exact = parity.parity(reference, path)
    parity.check_parity(exact, relative_error=relative_error, same_decision=same_decision)
    measured = {"parity": parity.parity_elsewhere(reference, path), "parity_of_exact_sums": exact}
    inspect.check_zeros(path, pattern)
    audit = Audit(path)
    kernels = audit.kernels(weights)
    check_integer(kernels)
    return {**measured, **audit.summary(kernels), "embedding_errors": errors}


def _write(model: nn.Module, weights: Mapping[str, np.ndarray], path: Path, texts: parity.Texts) -> None:
    to_onnx(model, path, inputs=list(inputs(texts.batches[0])), outputs=texts.outputs)
    name_weights(path, weights)
