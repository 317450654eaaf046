"""Tables in int8: worked by hand, left alone where they are not only looked up, widened after the rows are gathered."""

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pruneonce.deployment import audit, embeddings, inspect, parity
from tests.conftest import token_batch

TABLE = np.array([[1.0, -2.0, 0.0], [0.5, 4.0, 0.0], [-1.27, 1.0, 0.0], [0.0, 0.0, 0.0]], np.float32)


def write(path, nodes, outputs, **stored):
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", [ids], made, tensors), opset_imports=[helper.make_opsetid("", 20)]),
        path,
    )
    return path


def test_a_table_worked_by_hand(tmp_path):
    path = write(tmp_path / "m.onnx", [helper.make_node("Gather", ["table", "ids"], ["rows"])], ["rows"], table=TABLE)
    found = embeddings.quantize(path)
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    scale = np.array([1.27 / 127, 4 / 127, embeddings.TINY], np.float32)
    integers = np.array([[100, -64, 0], [50, 127, 0], [-127, 32, 0], [0, 0, 0]], np.int8)  # -63.5 to even
    np.testing.assert_array_equal(stored["table"], integers)
    np.testing.assert_allclose(stored["table_scale"], scale, rtol=1e-6)
    assert found == {"table": pytest.approx(np.linalg.norm(TABLE - integers * scale) / np.linalg.norm(TABLE))}

    session = onnxruntime.InferenceSession(path)
    ids = np.array([[2, 0], [1, 3]])
    np.testing.assert_allclose(session.run(["rows"], {"ids": ids})[0], (integers * scale)[ids], rtol=1e-6)


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([("Gather", ["table", "ids"], ["rows"], {}), ("Identity", ["table"], ["other"], {})], ["rows", "other"]),
        ([("Gather", ["table", "ids"], ["columns"], {"axis": 1})], ["columns"]),
        ([("Gather", ["table", "ids"], ["rows"], {})], ["rows", "table"]),
    ],
)
def test_a_table_that_others_read_stays_float(tmp_path, nodes, outputs):
    made = [helper.make_node(op, reads, writes, **more) for op, reads, writes, more in nodes]
    path = write(tmp_path / "m.onnx", made, outputs, table=TABLE)
    assert embeddings.quantize(path) == {}
    np.testing.assert_array_equal(numpy_helper.to_array(onnx.load(path).graph.initializer[0]), TABLE)


@pytest.fixture
def rounded(int8_onnx, tmp_path):
    """The int8 classifier with its tables in int8, and what each of them lost."""
    path = tmp_path / "model.onnx"
    shutil.copy(int8_onnx.path, path)
    return path, embeddings.quantize(path)


def test_all_tables_of_a_bert_are_found_and_lose_little(rounded):
    path, errors = rounded
    # Token types are one zero for all: the exporter has made a constant row of their table.
    assert sorted(name.split(".")[-2] for name in errors) == ["position_embeddings", "word_embeddings"]
    assert all(0 < error < 0.02 for error in errors.values())
    onnx.checker.check_model(onnx.load(path), full_check=True)


def test_the_model_is_the_same_to_within_its_tolerance(rounded, int8_onnx):
    path, _ = rounded
    assert path.stat().st_size < int8_onnx.path.stat().st_size
    assert inspect.prunable_weights(path).keys() == int8_onnx.weights.keys()
    batches = [token_batch(seed, 8, 12) for seed in range(4)]
    found = parity.parity(parity.reference(int8_onnx.model, parity.Texts(batches)), path)
    parity.check_parity(found, relative_error=0.1, same_decision=0.95)
    audit.check_integer(audit.Audit(path).kernels(int8_onnx.weights))


def test_onnx_runtime_gathers_integers_and_widens_rows_only(rounded):
    path, errors = rounded
    graph = audit.optimised(path).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    readers = {node.input[0]: node.op_type for node in graph.node if node.input and node.input[0] in errors}
    assert readers == dict.fromkeys(errors, "Gather")
    assert {stored[name].data_type for name in errors} == {TensorProto.INT8}
    gathered = {node.output[0] for node in graph.node if node.op_type == "Gather" and node.input[0] in errors}
    cast = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "Cast"}
    scaled = {node.input[0]: node.input[1] for node in graph.node if node.op_type == "Mul"}
    assert {scaled[cast[rows]] for rows in gathered} == {f"{name}_scale" for name in errors}
    assert len(gathered) == 2
