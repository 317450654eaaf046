"""PyTorch to ONNX: one file with dynamic axes, int8 as QDQ, and the proof that it is the model that was trained."""

import json
import logging
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxscript import opset20 as op
from torch import Tensor, nn

from pruneonce import quantization
from pruneonce.deployment import rewrite
from pruneonce.deployment.inspect import PRUNABLE, identity
from pruneonce.errors import ExportError
from pruneonce.models.configuration import longest

OPSET = 20


class _Logits(nn.Module):
    """input_ids, attention_mask and perhaps token_type_ids -> the outputs by name, plain tensors out.

    The mask is made here where the model takes it so, and token types of a single text are one zero for all: what
    transformers traces for a 2-D mask and without token types is the same function and some thirty nodes longer.
    """

    def __init__(self, model: nn.Module, outputs: Sequence[str]):
        super().__init__()
        self.model, self.outputs = model, outputs
        self.mask: Callable[[Tensor], Tensor] = added_mask if takes_added_mask(model) else given_mask
        types = "token_type_ids" in signature(model.forward).parameters
        self.constant = {"token_type_ids": torch.zeros(1, 1, dtype=torch.int64)} if types else {}

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> tuple[Tensor, ...]:
        types = self.constant if token_type_ids is None else {"token_type_ids": token_type_ids}
        out = self.model(input_ids=input_ids, attention_mask=self.mask(attention_mask), **types)
        return tuple(out[name] for name in self.outputs)


def added_mask(attention_mask: Tensor) -> Tensor:
    """int64[batch, length] -> float[batch, 1, 1, length], ready to be added to the scores: 0, or the least number."""
    return (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min


def given_mask(attention_mask: Tensor) -> Tensor:
    """int64[batch, length] as it is: the model makes its own of it."""
    return attention_mask


@torch.inference_mode()
def takes_added_mask(model: nn.Module) -> bool:
    """Whether `added_mask` gives the same output, to the last bit, as the mask that the model makes itself.

    Not where a mask is more than that: DeBERTa multiplies with it, ModernBERT hides what is out of a layer's window. So
    the example has padding, and is longer than two windows.
    """
    config: Any = model.config
    window = getattr(config, "sliding_window", None) or 0
    length = min(8 + 4 * window, longest(model) or 512)
    ids = torch.arange(2 * length).reshape(2, length) % config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    try:
        made, added = (model(input_ids=ids, attention_mask=m(mask))[0] for m in (given_mask, added_mask))
    except (RuntimeError, ValueError):  # a model that takes a mask of two axes only
        return False
    return torch.equal(made, added)


def _activation_qdq(x, scale, zero_point):
    return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero_point), scale, zero_point)


def _weight_dq(weight, scale):
    return op.DequantizeLinear(weight, scale, axis=1)


def to_onnx(
    model: nn.Module,
    path: Path,
    *,
    reads: Sequence[str] = ("input_ids", "attention_mask"),
    outputs: Sequence[str] = ("logits",),
) -> None:
    """Write `model`, a task model, as one ONNX file: inputs int64[batch, length], outputs float[batch, ...].

    reads: names of the inputs, in the order of `batch.INPUTS`. outputs: of the model, and of the file.
    An Int8Linear becomes QuantizeLinear/DequantizeLinear around a MatMul with an int8 initializer.
    """
    axes = {
        0: torch.export.Dim("batch"),
        1: torch.export.Dim("length", max=longest(model)),
    }
    # A tensor each: were it one, the exporter would take all inputs for the same and read only the last.
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in reads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which is not needed
        program = torch.onnx.export(
            _Logits(model.eval(), outputs).eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(axes,) * len(reads),
            input_names=list(reads),
            output_names=list(outputs),
            custom_translation_table={
                quantization.fake_quantize_activation._opoverload: _activation_qdq,
                quantization.dequantize_weight._opoverload: _weight_dq,
            },
            optimize=True,
            verbose=False,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if program is None:
        raise ExportError("expected a program from the exporter, found none.")
    rewrite.simplify(program.model)
    program.model.ir_version = oldest_ir_version(program.model.opset_imports)
    program.save(path, external_data=False)


def oldest_ir_version(opsets: Mapping[str, int]) -> int:
    """The lowest version of the file format that these operator sets, domain -> version, allow.

    ONNX Runtime refuses a file of a version that it does not know, whatever stands in it, and the exporter writes a newer
    one than it uses.
    """
    asked = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return onnx.helper.find_min_ir_version_for(asked)


def name_weights(path: Path, weights: Mapping[str, np.ndarray]) -> None:
    """Give every prunable weight in the file its layer's name, and list these names in the file's metadata.

    The exporter transposes and renames weights; what is counted in a file must be found there without the model.
    weights: [out, in] as trained (float) or as quantized (int8); they are found by content, in either orientation.
    Raises ExportError for a weight that the file does not hold bit for bit.
    """
    proto = onnx.load(path)
    graph = proto.graph
    stored = {t.name: t for t in graph.initializer}
    contents = {name: identity(numpy_helper.to_array(t)) for name, t in stored.items() if len(t.dims) == 2}
    readers = defaultdict(list)
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in contents:
                readers[contents[name]].append((node, i))
    order: dict[str, str] = {}
    equal = defaultdict(list)  # content -> the layers with it: two may have equal weights, all zero say
    for layer, weight in weights.items():
        order[layer] = "out,in" if identity(weight) in readers else "in,out"
        equal[identity(weight if order[layer] == "out,in" else weight.T)].append(layer)
    for content, layers in equal.items():
        places = readers[content]
        if len(places) < len(layers):
            raise ExportError(
                f"expected the weight of {layers[-1]} in {path.name} bit for bit, found no initializer equal to it."
            )
        for layer in layers:
            graph.initializer.add().CopyFrom(stored[places[0][0].input[places[0][1]]])
            graph.initializer[-1].name = f"{layer}.weight"
        for k, (node, i) in enumerate(places):  # a reader each; all the others, of a shared weight, to the last layer
            node.input[i] = f"{layers[min(k, len(layers) - 1)]}.weight"
    read = {name for node in graph.node for name in node.input}
    for i in reversed(range(len(graph.initializer))):
        if graph.initializer[i].name not in read:
            del graph.initializer[i]
    # The exporter notes in every node where in which file it was traced: paths of this machine, and other bytes elsewhere.
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, graph):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.helper.set_model_props(proto, {PRUNABLE: json.dumps(order, sort_keys=True)})
    onnx.save(proto, path)
