"""Parity: measured between ONNX Runtime and PyTorch, and refused beyond the tolerance."""

import copy

import numpy as np
import onnx
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
    parity.check_parity(found, relative_error=1e-4 if exact else 0.05, same_decision=1.0)


def test_parity_is_measured_not_assumed(dense_onnx):
    """Another model against the file: it must be told apart."""
    other = copy.deepcopy(dense_onnx.model)
    with torch.no_grad():
        other.classifier.bias[0] += 0.5
    batches = [token_batch(0, 8, 12)]
    found = parity.parity(parity.reference(other, parity.Texts(batches)), dense_onnx.path)
    assert found["max_difference"] == pytest.approx(0.5, abs=1e-4)
    with pytest.raises(ExportError, match=r"a relative error of 0\.0001 "):
        parity.check_parity(found, relative_error=1e-4, same_decision=0.0)


def two_classes(rows: int) -> tuple[parity.Texts, list[np.ndarray]]:
    """Logits of rows in two batches, far from a border."""
    signs = np.where(np.arange(rows) % 2, 1.0, -1.0)
    logits = (4 * np.stack([signs, -signs], axis=1)).astype(np.float32)
    return parity.Texts([token_batch(0, rows // 2, 4), token_batch(1, rows - rows // 2, 4)]), [
        *np.split(logits, [rows // 2])
    ]


def test_one_text_at_a_border_is_no_fault_and_all_texts_moved_is_one():
    texts, right = two_classes(128)
    one = [right[0], right[1].copy()]
    one[1][0] *= -0.5  # one text, decided otherwise: a difference of 1.5 times the largest logit
    found = parity.differences(parity.Reference(texts, right), one)
    assert found["max_difference"] == 1.5 * found["max_logit"]
    assert found["relative_error"] == pytest.approx(1.5 / 128**0.5)
    parity.check_parity(found, relative_error=0.15, same_decision=0.99)

    every = [0.8 * logits for logits in right]  # all texts, decided alike: a fifth of the largest logit
    found = parity.differences(parity.Reference(texts, right), every)
    assert found["same_decision"] == 1.0
    assert found["relative_error"] == pytest.approx(0.2)
    with pytest.raises(
        ExportError, match=r"within a relative error of 0\.15 and 99\.00% equal decisions, found an error of 0\.2 and"
    ):
        parity.check_parity(found, relative_error=0.15, same_decision=0.99)


def test_logits_of_zero_have_an_error_if_others_are_found():
    texts, right = two_classes(8)
    zeros = [0 * logits for logits in right]
    assert parity.differences(parity.Reference(texts, zeros), zeros)["relative_error"] == 0.0
    found = parity.differences(parity.Reference(texts, zeros), [logits + 1e-6 for logits in zeros])
    with pytest.raises(ExportError, match="has learned nothing"):
        parity.check_parity(found, relative_error=0.1, same_decision=0.0)


def test_a_file_that_rounds_to_wrong_grids_is_refused(int8_onnx, tmp_path):
    """What the tolerance is for: no DequantizeLinear has the zero point of its QuantizeLinear."""
    model = onnx.load(int8_onnx.path)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for number, node in enumerate(node for node in model.graph.node if node.op_type == "QuantizeLinear"):
        zero = values[node.input[2]]
        node.input[2] = f"wrong_{number}"
        model.graph.initializer.append(onnx.numpy_helper.from_array((zero + 24).astype(zero.dtype), node.input[2]))
    onnx.save(model, tmp_path / "wrong.onnx")
    found = parity.parity(parity.reference(int8_onnx.model, parity.Texts([token_batch(0, 16, 12)])), tmp_path / "wrong.onnx")
    with pytest.raises(ExportError, match=r"within a relative error of 0\.15 "):
        parity.check_parity(found, relative_error=0.15, same_decision=0.0)


def test_a_logit_that_is_no_number_is_no_parity(dense_onnx):
    batches = [token_batch(0, 8, 12), token_batch(1, 8, 12)]
    texts = parity.Texts(batches, decide=lambda logits, batch: np.ones(len(logits)))
    reference = parity.reference(dense_onnx.model, texts)
    reference.logits[0][3, 1] = np.nan
    found = parity.parity(reference, dense_onnx.path)
    with pytest.raises(ExportError, match="found an error of nan"):
        parity.check_parity(found, relative_error=1e-4, same_decision=1.0)


def test_check_parity_wants_equal_decisions():
    found = {"relative_error": 0.0, "max_difference": 0.0, "max_logit": 1.0, "same_decision": 0.97, "rows": 100}
    parity.check_parity(found, relative_error=0.1, same_decision=0.97)
    with pytest.raises(ExportError, match=r"97\.00% equal"):
        parity.check_parity(found, relative_error=0.1, same_decision=0.98)
