"""Names of the prunable weights in an ONNX file: those of their layers, so that a reader needs no model."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from pruneonce.deployment.inspect import PRUNABLE, content, matrix_readers
from pruneonce.errors import ExportError


def name_weights(path: Path, weights: Mapping[str, np.ndarray]) -> None:
    """Give every prunable weight in the file its layer's name, and list the layers in the file's metadata.

    weights: [out, in], float as trained or int8 as quantized. The exporter transposes and renames them: they are found
    by content, in either orientation.
    Raises ExportError for a weight that the file does not hold bit for bit.
    """
    proto = onnx.load(path)
    readers = matrix_readers(proto.graph)
    orientation: dict[str, str] = {}
    layers = defaultdict(list)  # content -> the layers with it: two layers may have equal weights
    for layer, weight in weights.items():
        orientation[layer] = "out,in" if content(weight) in readers else "in,out"
        layers[content(weight if orientation[layer] == "out,in" else weight.T)].append(layer)
    for key, names in layers.items():
        if len(readers.get(key, ())) < len(names):
            raise ExportError(
                f"expected the weight of {names[-1]} in {path.name} bit for bit, found no initializer equal to it."
            )
        _rename(proto.graph, readers[key], names)
    _remove_unread(proto.graph)
    _remove_traces(proto.graph)
    onnx.helper.set_model_props(proto, {PRUNABLE: json.dumps(orientation, sort_keys=True)})
    onnx.save(proto, path)


def _rename(graph: onnx.GraphProto, readers: Sequence[tuple[onnx.NodeProto, int]], layers: Sequence[str]) -> None:
    """Store the weight that `readers` read once for each layer. Each layer gets a reader, the last one all others."""
    node, i = readers[0]
    tensor = next(t for t in graph.initializer if t.name == node.input[i])
    for layer in layers:
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = f"{layer}.weight"
    for k, (node, i) in enumerate(readers):
        node.input[i] = f"{layers[min(k, len(layers) - 1)]}.weight"


def _remove_unread(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input}
    for i in reversed(range(len(graph.initializer))):
        if graph.initializer[i].name not in read:
            del graph.initializer[i]


def _remove_traces(graph: onnx.GraphProto) -> None:
    """Remove the exporter's notes about source files: they hold this machine's paths, so bytes would differ elsewhere."""
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, graph):
        del part.metadata_props[:]
        part.doc_string = ""
