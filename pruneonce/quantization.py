"""Fake quantization: a linear whose two operands are rounded to int8, with a straight-through gradient.

Affine quantization: q = clamp(round(x / scale) + zero_point, lo, hi); its value is (q - zero_point) * scale.
Weights: int8 symmetric [-127, 127], a scale per output channel, so 0 maps to 0 and sparsity survives. With 7 bits the grid
is [-63, 63], stored as int8. A processor without VNNI adds two products of uint8 and int8 in 16 bits: 255 * 127 * 2
overflows there, 255 * 63 * 2 does not.
Activations: uint8 affine [0, 255], a scale and zero point per tensor, from a moving average of minimum and maximum.
Both are custom operators, so that the exporter can write QuantizeLinear/DequantizeLinear in their place.
Source: Zafrir et al. 2019, arXiv:1910.06188 (Q8BERT), and 2021, arXiv:2111.05754, "quantization-aware training".
"""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from pruneonce.batch import Batch, inputs
from pruneonce.engine import is_first_process
from pruneonce.errors import ModelError
from pruneonce.sparsity import masks
from pruneonce.sparsity.masks import Layers, MaskedLinear, body

FILE = "quantization.json"  # in the folder of a quantized model
TINY = 1e-8  # floor of a scale: a fully pruned row has maximum 0, a constant activation range 0


@torch.library.custom_op("pruneonce::fake_quantize_activation", mutates_args=())
def fake_quantize_activation(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """x rounded to the uint8 grid of the tensor and back. scale float[], zero_point uint8[].

    Gradient: 1 where x is inside the grid, else 0.
    """
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero_point.int(), 0, 255).to(x.dtype)


@torch.library.custom_op("pruneonce::fake_quantize_weight", mutates_args=())
def fake_quantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """weight float[out, in] rounded to the int8 grid of its row and back. scale float[out]. Gradient: 1."""
    zero_points = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero_points, 0, -127, 127)


def _keep_activation(ctx, inputs, output) -> None:
    x, scale, zero_point = inputs
    offset = zero_point.float()
    ctx.save_for_backward((x >= (-0.5 - offset) * scale) & (x <= (255.5 - offset) * scale))


fake_quantize_activation.register_fake(lambda x, scale, zero_point: torch.empty_like(x))
fake_quantize_activation.register_autograd(
    lambda ctx, grad: (grad * ctx.saved_tensors[0], None, None), setup_context=_keep_activation
)
fake_quantize_weight.register_fake(lambda weight, scale: torch.empty_like(weight))
fake_quantize_weight.register_autograd(lambda ctx, grad: (grad, None))


def weight_scale(weight: Tensor, bits: int = 8) -> Tensor:
    """float[out]: largest |weight| of each row / (2^(bits - 1) - 1), at least TINY. bits: 8 or 7."""
    return (weight.detach().abs().amax(dim=1) / (2 ** (bits - 1) - 1)).clamp(min=TINY)


def quantize_weight(weight: Tensor, bits: int = 8) -> Tensor:
    """int8[out, in]: the integers that `fake_quantize_weight` computes with."""
    scale = weight_scale(weight, bits)  # the operator itself rounds: w / scale and w * (1 / scale) can differ
    return (fake_quantize_weight(weight.detach(), scale) / scale[:, None]).round().to(torch.int8)


def activation_grid(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """(scale float[], zero_point uint8[]) of the uint8 grid over [low, high], stretched to hold 0 exactly."""
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = ((high - low) / 255).clamp(min=TINY)
    return scale, (-low / scale).round().clamp(0, 255).to(torch.uint8)


@torch.library.custom_op("pruneonce::dequantize_weight", mutates_args=())
def dequantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """int8[in, out] * scale float[out] -> float[in, out]."""
    return weight.float() * scale


dequantize_weight.register_fake(lambda weight, scale: torch.empty_like(weight, dtype=torch.float32))


def _extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of x, float[] each, over all processes, as each has a part of the batch."""
    low, high = (v.float() for v in x.detach().aminmax())
    if distributed.is_available() and distributed.is_initialized():
        both = torch.stack([-low, high])
        distributed.all_reduce(both, distributed.ReduceOp.MAX)
        low, high = -both[0], both[1]
    return low, high


class FakeQuantLinear(MaskedLinear):
    """A masked linear that rounds its input and its weight to int8 first.

    rounds: False computes with the unrounded operands, before quantization-aware training begins.
    observe: True moves the range [low, high] of the input by every batch.
    momentum: weight of a new batch in the moving average, in (0, 1].
    """

    low: Tensor
    high: Tensor

    def __init__(self, linear: nn.Linear, momentum: float = 0.01, weight_bits: int = 8):
        super().__init__(linear)
        self.momentum, self.weight_bits, self.observe, self.rounds = momentum, weight_bits, True, True
        device = linear.weight.device
        self.register_buffer("low", torch.zeros((), device=device), persistent=False)
        self.register_buffer("high", torch.zeros((), device=device), persistent=False)

    @torch.no_grad()
    def _update(self, x: Tensor) -> None:
        """Moving average of minimum and maximum. The first tensor sets it."""
        low, high = _extremes(x)
        weight = self.momentum if self.high > self.low else 1.0
        self.low.lerp_(low, weight)
        self.high.lerp_(high, weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.observe:
            self._update(x)
        if not self.rounds:
            return super().forward(x)
        x = fake_quantize_activation(x, *activation_grid(self.low, self.high))
        weight = self.effective_weight
        return F.linear(x, fake_quantize_weight(weight, weight_scale(weight, self.weight_bits)), self.bias)


class Int8Linear(nn.Module):
    """A linear of the int8 file: int8 weight, its scale, the grid of the input. Equal to a frozen FakeQuantLinear."""

    weight: Tensor  # int8[in, out], as ONNX multiplies
    weight_scale: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, linear: FakeQuantLinear):
        super().__init__()
        weight = linear.effective_weight.detach()
        self.bias = linear.bias
        self.register_buffer("weight", quantize_weight(weight, linear.weight_bits).T.contiguous())
        self.register_buffer("weight_scale", weight_scale(weight, linear.weight_bits))
        scale, zero_point = activation_grid(linear.low, linear.high)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def forward(self, x: Tensor) -> Tensor:
        x = fake_quantize_activation(x, self.scale, self.zero_point)
        y = x @ dequantize_weight(self.weight, self.weight_scale)
        return y if self.bias is None else y + self.bias


def to_int8(model: nn.Module) -> dict[str, Int8Linear]:
    """Replace, in place, every fake-quantized linear by an Int8Linear. Returns them by name."""
    linears = {name: Int8Linear(linear) for name, linear in quantized_linears(model).items()}
    masks.replace(model, linears)
    return linears


def quantized_linears(model: nn.Module) -> dict[str, FakeQuantLinear]:
    """Every fake-quantized linear by its name in the model's body."""
    return {name: m for name, m in body(model).named_modules() if isinstance(m, FakeQuantLinear)}


def lock(model: nn.Module, layers: Layers, *, momentum: float, weight_bits: int) -> dict[str, Tensor]:
    """Replace, in place, every prunable linear by a fake-quantized one with its zeros locked. Returns the pattern.

    layers: of `masks.prunable`. momentum, weight_bits: of `FakeQuantLinear`. The pattern is that of `masks.lock`.
    """
    masks.mask_linears(model, layers, partial(FakeQuantLinear, momentum=momentum, weight_bits=weight_bits))
    return masks.lock(model)


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Batch], *, engine: Accelerator) -> None:
    """Set the first ranges: the model reads the batches, and the ranges of linears with `observe` move. No weight does.

    The batches are the same on every process, and so are the ranges.
    """
    for batch in batches:
        with engine.autocast():
            model(**{name: tensor.to(engine.device) for name, tensor in inputs(batch).items()})


def before_step(
    model: nn.Module, *, steps: int, begin_ratio: float, freeze_ranges_ratio: float
) -> Callable[[int], dict[str, float]]:
    """The hook of quantization-aware training that `training.loop.fit` calls before every step.

    Operands are rounded from `begin_ratio` of the steps on. Ranges move up to `freeze_ranges_ratio` of them.
    """

    def hook(step: int) -> dict[str, float]:
        for linear in quantized_linears(model).values():
            linear.observe = step < freeze_ranges_ratio * steps
            linear.rounds = step >= begin_ratio * steps
        return {}

    return hook


def freeze(model: nn.Module) -> None:
    """Freeze the ranges and round the operands: the model computes what its int8 file computes, until `before_step` runs."""
    for linear in quantized_linears(model).values():
        linear.observe, linear.rounds = False, True


def save(linears: Mapping[str, FakeQuantLinear], folder: Path) -> None:
    """Write what a quantized model needs besides its weights: the bits of a weight, and the input range of every layer.

    linears: of `quantized_linears`; these are the pruned layers. Of several processes the first one writes.
    transformers would drop the ranges silently from the file of the weights.
    Raises ModelError if there are no linears, or linears of 7 and of 8 bits.
    """
    if not is_first_process():
        return
    bits = {linear.weight_bits for linear in linears.values()}
    if len(bits) != 1:
        raise ModelError(
            f"expected fake-quantized linears of one number of bits, found {sorted(bits) or 'no such linear'}. Call "
            "`quantized_linears` before `bake`, which puts plain linears back."
        )
    ranges = {name: [float(linear.low), float(linear.high)] for name, linear in linears.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps({"weight_bits": bits.pop(), "ranges": ranges}, indent=1) + "\n")


def load(model: nn.Module, folder: Path) -> None:
    """Put the fake quantizers of a saved model back, in place: its zeros locked, its ranges frozen.

    model: with the weights of `folder`. Raises ModelError if the model in `folder` was not quantized.
    """
    bits, ranges = _read(folder / FILE)
    masks.mask_linears(model, list(ranges), partial(FakeQuantLinear, weight_bits=bits))
    masks.lock(model)
    for name, linear in quantized_linears(model).items():
        low, high = ranges[name]
        linear.low.fill_(low)
        linear.high.fill_(high)
    freeze(model)


def _read(path: Path) -> tuple[int, dict[str, tuple[float, float]]]:
    """(bits of a weight, layer -> (low, high)). Raises ModelError if they do not stand there."""
    if not path.exists():
        raise ModelError(f"expected {path.name} in {path.parent}, found none: this model did not go through `quantize`.")
    try:
        found, most = json.loads(path.read_text()), torch.finfo(torch.float32).max
        bits = found["weight_bits"]
        ranges = {name: (low * 1.0, high * 1.0) for name, (low, high) in found["ranges"].items()}  # not of integers
        if bits not in (7, 8):
            raise ValueError(f"weight_bits {bits}, not 7 or 8")
        if not ranges:
            raise ValueError("no layer")
        if empty := [name for name, (low, high) in ranges.items() if not -most <= low <= high <= most]:
            raise ValueError(f"no range of numbers for {empty[0]}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise ModelError(
            f"expected ranges of quantized layers in {path}, found {type(error).__name__}: {error}. Run `quantize` again."
        ) from None
    return bits, ranges
