"""Weights in other files: read from the model's own folder alone, on every way that a model is loaded."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import pruneonce
from pipeline.lineage import model_file
from pruneonce import command
from pruneonce.deployment import about, external, packing, protobuf, provenance, unpacking
from pruneonce.deployment import execution as running
from pruneonce.errors import PackError
from pruneonce.serving.predictor import Predictor

WEIGHTS = np.arange(4, dtype=np.float32)
PLACES = ("initializer", "constant", "subgraph", "function", "sparse")


def model(location: str, place: str = "initializer") -> bytes:
    """x + weights, in ONNX: the weights are in a file of this name."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": str(WEIGHTS.nbytes)}.items():
        weights.external_data.add(key=key, value=value)
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    constant = helper.make_node("Constant", [], ["w"], value=weights)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    if place == "constant":
        nodes.insert(0, constant)
    if place == "subgraph":
        inner = helper.make_graph([constant], "inner", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, [4])])
        condition = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [True]))
        nodes[:0] = [condition, helper.make_node("If", ["c"], ["w"], then_branch=inner, else_branch=inner)]
    graph = helper.make_graph(nodes, "graph", [x], [y], [weights] if place == "initializer" else [])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    if place == "function":
        made.functions.add(name="f", domain="own", node=[constant])
    if place == "sparse":
        made.graph.sparse_initializer.add(values=weights)
    return made.SerializeToString()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder of a model, with weights beside it; the file `secret` is above, and links lead there."""
    inner = tmp_path / "models"
    inner.mkdir()
    for file in (tmp_path / "secret", inner / "weights"):
        file.write_bytes(WEIGHTS.tobytes())
    (inner / "link").symlink_to(tmp_path / "secret")
    (inner / "up").symlink_to(tmp_path)
    (inner / "circle").symlink_to(inner / "circle")
    os.link(tmp_path / "secret", inner / "hard")
    os.mkfifo(inner / "pipe")
    monkeypatch.chdir(tmp_path)
    return inner


OUTSIDE = ("{above}/secret", "../secret", "./x/../../secret", "up/secret", "link", "hard", "{above}/models/weights")
NOT_THERE = ("secret", "nothing", "weights/x", "circle", "pipe", ".", "", "a\0b", "*/_ORT_MEM_ADDR_/*", "/dev/zero")
WAYS = {
    "load": lambda path: pruneonce.load(path),
    "stock": lambda path: pruneonce.load(path, execution="stock"),
    "sparse": lambda path: pruneonce.load(path, execution="sparse"),
    "predict": lambda path: Predictor(path),
    "about": lambda path: about.about(path),
    "pack": lambda path: packing.pack(path, path.with_name("packed")),
    "packed_bytes": lambda path: packing.packed_bytes(path),
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_outside_of_the_folder_are_refused(folder, way):
    path, before = folder / "model.onnx", None
    for location in (*OUTSIDE, *NOT_THERE):
        path.write_bytes(model(location.format(above=folder.parent)))
        before = before or sorted(folder.iterdir())
        with pytest.raises(PackError, match=r"expected the weights of|holds its weights") as caught:
            WAYS[way](path)
        assert "\n" not in str(caught.value)
        assert sorted(folder.iterdir()) == before
    assert len(OUTSIDE + NOT_THERE) == 17


@pytest.mark.parametrize("execution", ["stock", "sparse"])
def test_a_session_without_that_check_is_refused_by_the_libraries(folder, execution):
    """Such as `evaluate` opens, of files that `export` wrote."""
    path = folder / "model.onnx"
    for location in (text for text in OUTSIDE if text != "hard"):
        path.write_bytes(model(location.format(above=folder.parent)))
        for given in (path, path.read_bytes()):
            with pytest.raises(PackError, match="expected a model that ONNX Runtime"):
                running.session(given, threads=1, execution=execution)


@pytest.mark.parametrize(
    "words", [["inspect", "M"], ["accelerate", "M", "O"], ["pack", "M", "O"], ["predict", "M", "--text", "x"]]
)
def test_a_command_refuses_them_in_one_line(folder, monkeypatch, words):
    path = folder / "model.onnx"
    path.write_bytes(model("../secret"))
    names = {"M": str(path), "O": str(folder / "out")}
    monkeypatch.setattr("sys.argv", ["pruneonce", *(names.get(word, word) for word in words)])
    with pytest.raises(SystemExit, match=r"^PackError: expected [^\n]*$"):
        command.main()
    assert not (folder / "out").exists()


@pytest.mark.parametrize("place", PLACES)
def test_wherever_the_tensor_stands(folder, place):
    path = folder / "model.onnx"
    path.write_bytes(model("../secret", place))
    onnx.load_model_from_string(path.read_bytes())
    with pytest.raises(PackError, match=r"found '\.\./secret', which lies outside of it"):
        unpacking.model(path)


@pytest.mark.parametrize("execution", ["auto", "stock"])
def test_weights_beside_the_model_are_read(folder, execution):
    path = folder / "model.onnx"
    path.write_bytes(model("weights"))
    (answer,) = pruneonce.load(path, execution=execution).run(None, {"x": np.ones(4, np.float32)})
    assert answer.tolist() == [1, 2, 3, 4]


def test_what_is_packed_holds_all_its_weights(folder):
    """Unpacked in memory it has no folder: nothing beside it, and nothing of the working folder."""
    path, forged = folder / "model.packed", model("weights")
    streams = [packing.MAGIC + bytes([packing.VERSION]), packing.encode(forged, 1)]
    end = packing.HEAD.pack(packing.END, 0, len(forged)) + hashlib.sha256(forged).digest()
    path.write_bytes(b"".join([*streams, end]))
    for way in (pruneonce.load, Predictor, unpacking.model, about.about):
        with pytest.raises(
            PackError, match=r"expected all weights in .*model\.packed, found some in another file, 'weights'"
        ):
            way(path)
    unpacking.unpack(path, folder / "out.onnx")  # bit for bit; it is checked when it is loaded
    assert (folder / "out.onnx").read_bytes() == forged


def test_trace_and_inspect_read_no_weights_to_say_what_a_file_is(folder):
    path = folder / "model.onnx"
    path.write_bytes(model("../secret"))
    assert model_file.read(path).about == {}
    provenance_keys = protobuf.metadata(io.BytesIO(path.read_bytes()))
    assert provenance.ABOUT not in provenance_keys


def field(number: int, value: bytes) -> bytes:
    """A field of a protobuf message."""
    return bytes([number << 3 | 2, len(value) & 0x7F | 0x80, len(value) >> 7]) + value


def test_graphs_in_graphs_do_not_overflow():
    inner = helper.make_graph([], "g", [], [])
    deep = inner.SerializeToString()
    for _ in range(60):  # a node (1) with an attribute (5) with a graph (6)
        deep = field(1, field(5, field(6, deep)))
    with pytest.raises(PackError, match="more than 100 deep"):
        external.check(io.BytesIO(field(protobuf.GRAPH, deep)), None, "model.onnx")
