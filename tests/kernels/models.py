"""Small models of the operators, by onnx.helper, and sessions that run them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from pruneonce.deployment.sparse_form import sparse_form

FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
GRID = {"output_scale": 0.1, "output_zero_point": 128}
ANY = None  # a shape of any rank


def node(
    op_type: str, inputs: Sequence[str], outputs: Sequence[str], /, *, domain: str = "pruneonce", **attributes
) -> NodeProto:
    made = helper.make_node(op_type, inputs, outputs, domain=domain)
    made.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())  # one is called "inputs"
    return made


def model(
    nodes, inputs: dict[str, int], outputs: dict[str, int], constants: dict[str, np.ndarray] | None = None
) -> ModelProto:
    """inputs, outputs: types of elements, by name; shapes are any."""
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    ends = [[helper.make_tensor_value_info(name, kind, ANY) for name, kind in part.items()] for part in (inputs, outputs)]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("pruneonce", 1)]
    return helper.make_model(helper.make_graph(nodes, "g", *ends, stored), opset_imports=opsets, ir_version=9)


def session(made: ModelProto, library: Path, *, threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])


def linear(x: str, outputs: Sequence[str], weight: np.ndarray, scale, bias, *, zero_point: int, activation: int = 0, **grid):
    """(node, its constants)."""
    form = sparse_form(weight)
    names = ("words", "index", "counts", "rows")
    constants = {name: getattr(form, name) for name in names} | {"scale": scale, "bias": bias}
    attributes = {"inputs": weight.shape[1], "zero_point": zero_point, "activation": activation, **(grid or GRID)}
    return node("SparseLinear", [x, *constants], outputs, **attributes), constants


def sparse(generator: np.random.Generator, outputs: int, inputs: int, density: float = 0.3) -> np.ndarray:
    kept = generator.random((outputs, inputs)) < density
    return (generator.integers(-127, 128, (outputs, inputs)) * kept).astype(np.int8)
