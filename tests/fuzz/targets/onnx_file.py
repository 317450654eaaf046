"""ONNX files, damaged: packed, and loaded to answer."""

from pathlib import Path
from random import Random

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import pruneonce
from pruneonce.deployment import packing, unpacking
from tests.fuzz import damage
from tests.fuzz.case import Files

OUTS = ("out.packed", "out.packed.part")
SECONDS = 10.0
SHARE = 14


def _whole() -> bytes:
    """A product and a sum; one tensor is large enough to be cut out."""
    weight = np.arange(32 * 32, dtype=np.float32).reshape(32, 32) % 7 * (np.arange(32) % 3 == 0)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["y", "b"], ["z"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.ones(32, np.float32), "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return model.SerializeToString()


WHOLE = _whole()


def make(draw: Random) -> Files:
    if draw.random() < 0.5:
        return {"model.onnx": damage.data(WHOLE, draw)}
    model = onnx.load_from_string(WHOLE)
    for _ in range(draw.randint(1, 3)):
        _change(model, draw)
    return {"model.onnx": model.SerializeToString()}


def _change(model: onnx.ModelProto, draw: Random) -> None:
    graph, tensor = model.graph, draw.choice(model.graph.initializer)
    kind = draw.randrange(8)
    if kind == 0:
        tensor.data_type = draw.choice((0, 1, 2, 7, 8, 11, 16, 23, 999))
    elif kind == 1:
        tensor.raw_data = damage.data(tensor.raw_data, draw)
    elif kind == 2:
        tensor.dims[:] = draw.choice(([], [0], [-1], [2**40, 2**40], [1] * 100, [32]))
    elif kind == 3:
        tensor.name = draw.choice(("", "x", "é" * 500, "a\nb"))
    elif kind == 4:
        draw.choice(graph.node).op_type = draw.choice(("", "NoSuch", "Loop", "If", "Reshape"))
    elif kind == 5:
        draw.choice(graph.node).input[0] = draw.choice(("", "z", "nowhere", "w"))
    elif kind == 6:
        tensor.external_data.add(key="location", value=draw.choice(("/nowhere/x", "../x", "x")))
        tensor.data_location = draw.choice((0, 1))
    else:
        model.opset_import[0].version = draw.choice((0, -1, 1, 999, 2**62))


def run(folder: Path) -> None:
    packing.pack(Path("model.onnx"), Path("out.packed"))
    assert unpacking.read(Path("out.packed")) == Path("model.onnx").read_bytes()
    Path("out.packed").unlink()  # what is packed need be no model
    pruneonce.load("model.onnx", threads=1)
