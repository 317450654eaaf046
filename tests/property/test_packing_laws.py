"""Laws of packing: any tensor comes back bit for bit, and a large sparse one lies near its entropy."""

import hashlib
import io

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import helper, numpy_helper

from benchmarks.size import entropy_bytes
from pruneonce.deployment import packing, unpacking

TYPES = ("int8", "uint8", "int16", "float16", "float32", "int32", "int64", "float64", "bool")


def there_and_back(raw: bytes, width: int) -> bytes:
    end = packing.HEAD.pack(packing.END, 0, len(raw)) + hashlib.sha256(raw).digest()
    archive = packing.MAGIC + bytes([packing.VERSION]) + packing.encode(raw, width) + end
    return b"".join(unpacking.unpacked(io.BytesIO(archive)))


@given(st.binary(min_size=1, max_size=64), st.sampled_from([1, 2, 4, 8]), st.floats(0, 1), st.integers(0, 99))
def test_any_elements_come_back(element, width, zeros, seed):
    raw = np.frombuffer(element * width * 9, f"<u{width}").copy()
    raw[np.random.default_rng(seed).random(raw.size) < zeros] = 0
    assert there_and_back(raw.tobytes(), width) == raw.tobytes()


@st.composite
def tensors(draw):
    """Shapes with none, one or many elements, of values that include nan, inf and minus zero."""
    kind = draw(st.sampled_from(TYPES))
    array = draw(arrays.arrays(kind, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=12)))
    return np.tile(array, draw(st.sampled_from([1, 1, 40]))) if array.ndim else array


@given(st.lists(tensors(), max_size=4), st.sampled_from([1, 64, 1024]), st.sampled_from([7, 1 << 20]))
def test_any_model_comes_back(found, large, piece):
    stored = [numpy_helper.from_array(array, f"t{i}") for i, array in enumerate(found)]
    model = helper.make_model(helper.make_graph([], "g", [], [], stored)).SerializeToString()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "LARGE", large)
        patch.setattr(packing, "PIECE", piece)
        archive = b"".join(packing.packed(io.BytesIO(model)))
    assert b"".join(unpacking.unpacked(io.BytesIO(archive))) == model
    assert len(onnx.load_from_string(model).graph.initializer) == len(found)


@given(st.sampled_from([0.0, 0.3, 0.6, 0.85, 0.9, 0.95]), st.integers(0, 2**31))
def test_a_large_sparse_matrix_lies_within_4_percent_of_its_entropy(zeros, seed):
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((384, 768))
    weight[np.abs(weight) < np.quantile(np.abs(weight), zeros)] = 0
    integers = np.rint(weight * 127 / np.abs(weight).max()).astype(np.int8)
    size, bound = len(packing.encode(integers.tobytes(), 1)), entropy_bytes(integers)
    assert 0.99 * bound <= size <= 1.04 * bound + 200


@given(arrays.arrays("int8", st.integers(1, 400), elements=st.integers(-3, 3)))
def test_the_entropy_is_that_of_the_mask_and_of_the_values(values):
    """The law behind the format: to tell the zeros and then the rest takes no more than to tell all at once."""
    kept = values[values != 0]
    apart = entropy_bytes(values != 0) + (entropy_bytes(kept) if kept.size else 0)
    assert entropy_bytes(values) == pytest.approx(apart)
