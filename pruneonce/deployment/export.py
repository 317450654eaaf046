"""Export of a task model from PyTorch to ONNX: one file, dynamic batch and length, int8 layers as QDQ."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import opset20 as op
from torch import Tensor, nn

from pruneonce import quantization
from pruneonce.deployment import rewrite
from pruneonce.models.configuration import longest

OPSET = 20


def to_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    inputs: Sequence[str] = ("input_ids", "attention_mask"),
    outputs: Sequence[str] = ("logits",),
) -> None:
    """Write a task model as one ONNX file: inputs int64[batch, length], outputs float[batch, ...].

    inputs: names, in the order of `batch.INPUTS`. outputs: names, of the model and of the file.
    An Int8Linear becomes QuantizeLinear and DequantizeLinear around a MatMul with an int8 initializer.
    """
    program = _program(_Logits(model.eval(), outputs).eval(), inputs, outputs, max_length=longest(model))
    rewrite.simplify(program.model)
    program.model.ir_version = oldest_ir_version(program.model.opset_imports)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    program.save(path, external_data=False)


def oldest_ir_version(opsets: Mapping[str, int]) -> int:
    """The lowest version of the file format that these operator sets, domain -> version, allow.

    The exporter writes a newer version than it needs, and an older ONNX Runtime refuses the file for it.
    """
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return onnx.helper.find_min_ir_version_for(imports)


def _program(
    model: nn.Module, inputs: Sequence[str], outputs: Sequence[str], *, max_length: int | None
) -> torch.onnx.ONNXProgram:
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=max_length)}
    # One tensor for each input: the exporter takes inputs that share a tensor for one input.
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about torchvision, which is not needed
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(axes,) * len(inputs),
            input_names=list(inputs),
            output_names=list(outputs),
            custom_translation_table={
                quantization.fake_quantize_activation._opoverload: _activation_qdq,
                quantization.dequantize_weight._opoverload: _weight_dq,
            },
            optimize=True,
            verbose=False,
        )
    assert program is not None  # only the exporter without `dynamo` returns None
    return program


def _activation_qdq(x, scale, zero_point):
    return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero_point), scale, zero_point)


def _weight_dq(weight, scale):
    return op.DequantizeLinear(weight, scale, axis=1)


class _Logits(nn.Module):
    """The model with tensors in and tensors out: input_ids, attention_mask, perhaps token_type_ids -> its outputs.

    Two rewrites of the inputs save some thirty nodes and change no value. The additive mask is made here, where the
    model accepts one. The token types of a single text are one zero for all positions.
    """

    def __init__(self, model: nn.Module, outputs: Sequence[str]):
        super().__init__()
        self.model, self.outputs = model, outputs
        self.mask: Callable[[Tensor], Tensor] = additive_mask if takes_additive_mask(model) else binary_mask
        types = "token_type_ids" in signature(model.forward).parameters
        self.constant = {"token_type_ids": torch.zeros(1, 1, dtype=torch.int64)} if types else {}

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> tuple[Tensor, ...]:
        types = self.constant if token_type_ids is None else {"token_type_ids": token_type_ids}
        out = self.model(input_ids=input_ids, attention_mask=self.mask(attention_mask), **types)
        return tuple(out[name] for name in self.outputs)


def additive_mask(attention_mask: Tensor) -> Tensor:
    """int64[batch, length] -> float[batch, 1, 1, length], to be added to attention scores: 0, or the lowest float."""
    return (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min


def binary_mask(attention_mask: Tensor) -> Tensor:
    """int64[batch, length], unchanged: the model makes its own mask of it."""
    return attention_mask


@torch.inference_mode()
def takes_additive_mask(model: nn.Module) -> bool:
    """Whether the model's output is the same, to the last bit, with `additive_mask` and with `binary_mask`.

    It is not for DeBERTa, which multiplies with the mask, nor for ModernBERT, whose layers attend to a window. So the
    example has padding and is longer than two windows.
    """
    config: Any = model.config
    window = getattr(config, "sliding_window", None) or 0
    length = min(8 + 4 * window, longest(model) or 512)
    ids = torch.arange(2 * length).reshape(2, length) % config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    try:
        binary, additive = (model(input_ids=ids, attention_mask=m(mask))[0] for m in (binary_mask, additive_mask))
    except (RuntimeError, ValueError):  # a model that accepts a mask of two axes only
        return False
    return torch.equal(binary, additive)
