"""PyTorch to ONNX: one file with dynamic axes, int8 as QDQ, and the proof that it is the model that was trained."""

import json
import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxscript import opset20 as op
from torch import Tensor, nn

from pruneonce import lean, quantization, runtime
from pruneonce.batch import Batch, inputs
from pruneonce.batch import logits as stacked
from pruneonce.checkpoint import longest
from pruneonce.errors import ExportError, PatternBroken

OPSET = 20
EXACT_SUMS = {"session.x64quantprecision": "1"}  # no 16-bit sums on processors without VNNI, slower; others ignore it
PRUNABLE = "pruneonce.prunable"  # key in the file's metadata: the layers whose weights are named after them


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


def export(
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
    lean.simplify(program.model)
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
    contents = {name: _content(numpy_helper.to_array(t)) for name, t in stored.items() if len(t.dims) == 2}
    readers = defaultdict(list)
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in contents:
                readers[contents[name]].append((node, i))
    order: dict[str, str] = {}
    equal = defaultdict(list)  # content -> the layers with it: two may have equal weights, all zero say
    for layer, weight in weights.items():
        order[layer] = "out,in" if _content(weight) in readers else "in,out"
        equal[_content(weight if order[layer] == "out,in" else weight.T)].append(layer)
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


def _content(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes()


def prunable_weights(path: Path) -> dict[str, np.ndarray]:
    """The prunable matrices that the file says it holds: layer name -> array[out, in]."""
    proto = onnx.load(path)
    order = json.loads({p.key: p.value for p in proto.metadata_props}.get(PRUNABLE, "{}"))
    stored = {t.name: t for t in proto.graph.initializer}
    arrays = {layer: numpy_helper.to_array(stored[f"{layer}.weight"]) for layer in order}
    return {layer: w if order[layer] == "out,in" else w.T for layer, w in arrays.items()}


def matrix_zeros(path: Path) -> dict[str, tuple[int, int]]:
    """(zeros, size) of each prunable matrix, counted in the file."""
    return {layer: (int((w == 0).sum()), w.size) for layer, w in prunable_weights(path).items()}


def check_zeros(path: Path, pattern: Mapping[str, np.ndarray]) -> None:
    """Raises PatternBroken if a pruned weight is not zero in the file. pattern: bool[out, in], True where pruned."""
    stored = prunable_weights(path)
    for layer, zero in pattern.items():
        if (zero & (stored[layer] != 0)).any():
            raise PatternBroken(
                f"expected the pruned weights of {layer} to be zero in {path.name}, found some that are not."
            )


def shares_weights(path: Path) -> bool:
    """Whether several products read one int8 weight: ALBERT's layers, DeBERTa's tables of positions.

    ONNX Runtime 1.32 cannot load such a file with EXACT_SUMS ("Attempt to replace the existing tensor"); for processors that
    need it there are weights of 7 bits.
    """
    graph = onnx.load(path).graph
    integers = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
    widened = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in integers}
    return any(count > 1 for count in Counter(widened[i] for n in graph.node for i in n.input if i in widened).values())


class Audit:
    """The graph as ONNX Runtime runs it: which kernel multiplies which weight, and which products stay float."""

    def __init__(self, path: Path):
        self.graph = onnx.load_from_string(runtime.optimised(path)).graph
        self.stored = {t.name: t for t in self.graph.initializer}

    def kernels(self, weights: Mapping[str, np.ndarray]) -> dict[str, str]:
        """layer name -> op type of the node that reads its weight, found by content: names do not survive fusion.

        Where nodes of different types read one weight, all of them: "MatMul + MatMulIntegerToFloat".
        """
        matrices = {name: _content(numpy_helper.to_array(t)) for name, t in self.stored.items() if len(t.dims) == 2}
        readers = defaultdict(set)
        for node in self.graph.node:
            for name in node.input:
                if name in matrices:
                    readers[matrices[name]].add(node.op_type)
        return {
            layer: " + ".join(sorted(readers[_content(w)] | readers[_content(w.T)])) or "not found"
            for layer, w in weights.items()
        }

    def operators(self) -> dict[str, int]:
        """op type -> how many nodes of it run."""
        return dict(sorted(Counter(node.op_type for node in self.graph.node).items()))

    def float_products(self) -> list[str]:
        """Matrix products with a stored float matrix, by the name of that matrix."""
        matrices = {n for n, t in self.stored.items() if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2}
        products = [n for n in self.graph.node if "MatMul" in n.op_type or "Gemm" in n.op_type]
        return sorted({name for node in products for name in node.input if name in matrices})


def check_integer(kernels: Mapping[str, str]) -> None:
    """Raises ExportError, by name, for every layer whose product ONNX Runtime does not run on integers."""
    floats = {layer: kernel for layer, kernel in kernels.items() if not runtime.is_integer(kernel)}
    if floats:
        raise ExportError(f"expected an integer kernel for every quantized linear, found {floats}.")


@torch.inference_mode()
def logits(model: nn.Module, batches: Iterable[Batch], outputs: Sequence[str] = ("logits",)) -> list[np.ndarray]:
    """float[batch, ...] of every batch, in PyTorch; several outputs are stacked behind the batch."""
    return [stacked(model(**inputs(batch)), outputs).float().numpy() for batch in batches]


def largest(logits: np.ndarray, batch: Batch) -> np.ndarray:
    """The decision of a classifier: the class with the largest logit."""
    return logits.argmax(-1)


def parity(
    trained: Sequence[np.ndarray],
    path: Path,
    batches: Sequence[Batch],
    *,
    decide: Callable[[np.ndarray, Batch], np.ndarray] = largest,
    entries: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """ONNX Runtime against PyTorch on the same inputs: largest difference of a logit, and share of equal decisions.

    trained: what `logits` says. decide: logits of a batch -> its decisions. entries: session options, such as `EXACT_SUMS`.
    """
    session = runtime.session(path, threads=torch.get_num_threads(), entries=entries)
    differences, scale, rows, equal = 0.0, 0.0, 0, []
    for ours, batch in zip(trained, batches, strict=True):
        theirs = runtime.logits(session, batch)
        differences = float(np.maximum(differences, np.abs(ours - theirs).max()))  # not max(): nan is to stay
        scale = float(np.maximum(scale, np.abs(ours).max()))
        equal.append(decide(ours, batch) == decide(theirs, batch))
        rows += len(ours)
    same = float(np.concatenate(equal).mean())
    return {"max_difference": differences, "max_logit": scale, "same_decision": same, "rows": rows}


def check_parity(found: Mapping[str, float], *, max_difference: float, same_decision: float) -> None:
    """Raises ExportError if the two disagree by more than the tolerance.

    max_difference: of logits, as a fraction of the largest one.
    """
    near = found["max_difference"] <= max_difference * found["max_logit"]  # False where a logit is nan
    if not near or found["same_decision"] < same_decision:
        raise ExportError(
            f"expected ONNX Runtime within {max_difference:g} of the largest logit and {same_decision:.2%} equal decisions, "
            f"found a difference of {found['max_difference']:.3g} with logits up to {found['max_logit']:.3g} and "
            f"{found['same_decision']:.2%} equal. Logits near 0 are those of a model that has learned nothing; "
            "one that has wants more steps of quantization, or a wider tolerance."
        )
