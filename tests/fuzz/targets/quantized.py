"""Int8 ONNX files, damaged in their parts: accelerated, loaded, inspected; weights in other files, inside and outside."""

import functools
import json
from pathlib import Path
from random import Random

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import pruneonce
from pruneonce.deployment import execution, overview, packing, unpacking
from pruneonce.errors import PackError
from tests.fuzz import damage
from tests.fuzz.case import Files

OUTS = ("out.packed",)
SECONDS = 10.0
SHARE = 20

SECRET = b"what lies outside of the folder is nobody's to read" * 200
PLACES = (
    *("../secret", "folder/../../secret", "/etc/passwd", "link", "weights.bin", "folder/weights.bin", "folder", "pipe", ""),
    *("/dev/zero", "/proc/self/mem", "nowhere", *damage.WORDS[:-2]),
)
OPERATORS = ("", "NoSuch", "MatMul", "Gemm", "Gather", "Softmax", "Gelu", "LayerNormalization", "DequantizeLinear", "If")


@functools.cache
def _whole() -> bytes:
    """Two int8 linears with a GELU between them, a residual and a layer normalization, as `export` writes them."""
    draw = np.random.default_rng(0)
    stored: dict[str, np.ndarray] = {
        "epsilon": np.float32(1e-5),
        "gain": np.ones(32, np.float32),
        "shift": np.zeros(32, np.float32),
    }
    nodes = []
    for layer, (source, out) in {"a": ("x", "a.out"), "b": ("g", "b.out")}.items():
        weight = draw.integers(-127, 128, (32, 32), np.int8) * (draw.random((32, 32)) < 0.2)
        stored |= {
            f"{layer}.weight": weight.astype(np.int8),
            f"{layer}.bias": draw.standard_normal(32).astype(np.float32),
            f"{layer}.scale": draw.random(32, np.float32),
            f"{layer}.in": np.float32(0.02),
            f"{layer}.zero": np.uint8(120),
        }
        grid = [f"{layer}.in", f"{layer}.zero"]
        nodes += [
            helper.make_node("QuantizeLinear", [source, *grid], [f"{layer}.q"]),
            helper.make_node("DequantizeLinear", [f"{layer}.q", *grid], [f"{layer}.d"]),
            helper.make_node("DequantizeLinear", [f"{layer}.weight", f"{layer}.scale"], [f"{layer}.w"], axis=1),
            helper.make_node("MatMul", [f"{layer}.d", f"{layer}.w"], [f"{layer}.p"]),
            helper.make_node("Add", [f"{layer}.p", f"{layer}.bias"], [out]),
        ]
        if layer == "a":
            nodes.append(helper.make_node("Gelu", [out], ["g"]))
    nodes += [
        helper.make_node("Add", ["b.out", "x"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "gain", "shift"], ["y"], axis=-1, epsilon=1e-5),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()


@functools.cache
def _accelerated() -> bytes:
    made = execution.accelerated(_whole(), execution="sparse", threads=1)
    return _whole() if made is None else made


def start() -> None:
    _accelerated()


def make(draw: Random) -> Files:
    model = onnx.load_model_from_string(draw.choice((_whole(), _whole(), _accelerated())))
    for _ in range(draw.choice((1, 1, 2, 3))):
        _change(model, draw)
    content = model.SerializeToString()
    how = {"execution": draw.choice(("auto", "sparse", "sparse", "stock")), "packed": draw.random() < 0.3}
    return {
        "model.onnx": damage.data(content, draw) if draw.random() < 0.2 else content,
        "how.json": json.dumps(how).encode(),
    }


def _change(model: onnx.ModelProto, draw: Random) -> None:
    graph, node = model.graph, draw.choice(model.graph.node)
    tensor = draw.choice(graph.initializer)
    kind = draw.randrange(12)
    if kind == 0:
        tensor.data_type = draw.choice((0, 1, 2, 3, 7, 8, 11, 16, 22, 999))
    elif kind == 1:
        tensor.raw_data = draw.choice((b"", damage.data(tensor.raw_data, draw)))
    elif kind == 2:
        tensor.dims[:] = draw.choice(([], [0], [-1], [2**40, 2**40], [1] * 100, [32], [0, 32], [16, 64], [32, 32, 1]))
    elif kind == 3:
        node.op_type = draw.choice(OPERATORS)
    elif kind == 4 and node.input:
        node.input[draw.randrange(len(node.input))] = draw.choice(
            ("", "x", "y", "nowhere", draw.choice(graph.initializer).name)
        )
    elif kind == 5 and node.input:
        del node.input[draw.randrange(len(node.input)) :]
    elif kind == 6:
        draw.choice((node.output, node.input))[:] = []
    elif kind == 7:
        node.attribute.append(
            helper.make_attribute(draw.choice(("axis", "inputs", "heads", "zero_point")), draw.choice((-9, 2**40, 0.5, "a")))
        )
    elif kind == 8:
        for attribute in node.attribute:
            attribute.i, attribute.f = draw.choice((-1, 0, 7, 2**40, -(2**63))), draw.choice((0.0, -1.0, 1e38))
    elif kind == 9:
        graph.node.append(node)  # its outputs twice
    elif kind == 10:
        tensor.name = draw.choice(("", "x", "y", "a\nb", draw.choice(graph.initializer).name))
    else:
        tensor.external_data.add(key="location", value=draw.choice(PLACES))
        if draw.random() < 0.5:
            tensor.external_data.add(key="offset", value=draw.choice(("0", "-1", "99999999", "x")))
            tensor.external_data.add(key="length", value=draw.choice(("4096", "-1", "9" * 30, "")))
        tensor.data_location = TensorProto.EXTERNAL
        if draw.random() < 0.7:
            tensor.ClearField("raw_data")


def run(folder: Path) -> None:
    inside = Path("inside")
    inside.mkdir()
    Path("secret").write_bytes(SECRET)
    (inside / "folder").mkdir()
    for name in ("weights.bin", "folder/weights.bin"):
        (inside / name).write_bytes(bytes(5000))
    (inside / "link").symlink_to("../secret")
    file = inside / "model.onnx"
    file.write_bytes(Path("model.onnx").read_bytes())
    how = json.loads(Path("how.json").read_text())
    if how["packed"]:
        packing.pack(file, folder / "out.packed")
        (folder / "out.packed").rename(inside / "model.packed")
        file = inside / "model.packed"
    made = _made(file, how["execution"])
    assert made is None or SECRET[:64] not in made, "bytes of a file outside of the folder"
    try:
        pruneonce.load(file, threads=1, execution=how["execution"])
    finally:
        found = overview.of(unpacking.model(file), file, execution="stock", threads=1)
        json.dumps(overview.as_json(found))
        list(overview.lines(found))


def _made(file: Path, how: str) -> bytes | None:
    try:
        return execution.accelerated(unpacking.model(file), execution="sparse" if how == "stock" else how, threads=1)
    except PackError:
        return None
