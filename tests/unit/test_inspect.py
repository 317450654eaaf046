"""The prunable weights of an ONNX file: found by name, zeros counted, a lost zero found."""

import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pruneonce.deployment import inspect
from pruneonce.errors import PatternBroken

LAYER = "encoder.layer.0.attention.self.query"


def test_prunable_weights_are_found_by_name_as_trained(exported):
    found = inspect.prunable_weights(exported.path)
    assert set(found) == set(exported.weights)
    assert len(found) == 12
    for layer, weight in exported.weights.items():
        np.testing.assert_array_equal(found[layer], weight)
        assert found[layer].dtype == weight.dtype


def test_zeros_are_counted_in_the_file(int8_onnx):
    zeros = inspect.matrix_zeros(int8_onnx.path)
    for layer, weight in int8_onnx.weights.items():
        assert zeros[layer] == (int((weight == 0).sum()), weight.size)
        assert zeros[layer][0] >= round(0.8 * weight.size)


def test_a_zero_that_was_tampered_with_is_found(int8_onnx, tmp_path):
    inspect.check_zeros(int8_onnx.path, int8_onnx.pattern)
    path = tmp_path / "tampered.onnx"
    shutil.copy(int8_onnx.path, path)
    proto = onnx.load(path)
    tensor = next(t for t in proto.graph.initializer if t.name == f"{LAYER}.weight")
    weight = numpy_helper.to_array(tensor).copy()  # [in, out]
    row, column = np.argwhere(int8_onnx.pattern[LAYER].T)[0]
    weight[row, column] = 1
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    onnx.save(proto, path)
    with pytest.raises(PatternBroken, match=LAYER):
        inspect.check_zeros(path, int8_onnx.pattern)
