"""Parity: measured between ONNX Runtime and PyTorch, and refused beyond the tolerance."""

import copy

import numpy as np
import pytest
import torch

from pruneonce.deployment import parity
from pruneonce.errors import ExportError
from tests.conftest import token_batch

LAYER = "encoder.layer.0.attention.self.query"


def test_parity(exported):
    batches = [token_batch(seed, rows, length) for seed, (rows, length) in enumerate([(4, 10), (1, 7), (9, 33)])]
    found = parity.parity(parity.reference(exported.model, parity.Texts(batches)), exported.path)
    assert found["rows"] == 14
    assert found["same_decision"] == 1
    exact = exported.weights[LAYER].dtype == np.float32
    # int8: a value on the edge of two steps of a grid may fall to either side
    assert found["max_difference"] < (1e-5 if exact else 0.05) * found["max_logit"]
    parity.check_parity(found, max_difference=1e-4 if exact else 0.05, same_decision=1.0)


def test_parity_is_measured_not_assumed(dense_onnx):
    """Another model against the file: it must be told apart."""
    other = copy.deepcopy(dense_onnx.model)
    with torch.no_grad():
        other.classifier.bias[0] += 0.5
    batches = [token_batch(0, 8, 12)]
    found = parity.parity(parity.reference(other, parity.Texts(batches)), dense_onnx.path)
    assert found["max_difference"] == pytest.approx(0.5, abs=1e-4)
    with pytest.raises(ExportError, match="largest logit"):
        parity.check_parity(found, max_difference=1e-4, same_decision=0.0)


def test_a_logit_that_is_no_number_is_no_parity(dense_onnx):
    batches = [token_batch(0, 8, 12), token_batch(1, 8, 12)]
    texts = parity.Texts(batches, decide=lambda logits, batch: np.ones(len(logits)))
    reference = parity.reference(dense_onnx.model, texts)
    reference.logits[0][3, 1] = np.nan
    found = parity.parity(reference, dense_onnx.path)
    with pytest.raises(ExportError, match="found a difference of nan"):
        parity.check_parity(found, max_difference=1e-4, same_decision=1.0)


def test_check_parity_wants_equal_decisions():
    found = {"max_difference": 0.0, "max_logit": 1.0, "same_decision": 0.97, "rows": 100}
    parity.check_parity(found, max_difference=0.1, same_decision=0.97)
    with pytest.raises(ExportError, match=r"97\.00% equal"):
        parity.check_parity(found, max_difference=0.1, same_decision=0.98)
