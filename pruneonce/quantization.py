"""Simulated int8 with a straight-through gradient: the linear whose two operands are rounded first.

Affine quantization: q = clamp(round(x / scale) + zero_point, lo, hi); its value is (q - zero_point) * scale.
Weights: int8 symmetric [-127, 127], a scale per output channel, so 0 maps to 0 and sparsity survives. With 7 bits
[-63, 63], still stored as int8: a processor without VNNI adds two products of uint8 and int8 in 16 bits, where
255 * 127 * 2 overflows and 255 * 63 * 2 does not.
Activations: uint8 affine [0, 255], a scale and zero point per tensor, from a moving average of minimum and maximum.
Both are operators of their own so that the exporter can write QuantizeLinear/DequantizeLinear in their place.
Source: Zafrir et al. 2019, arXiv:1910.06188 (Q8BERT), and 2021, arXiv:2111.05754, "quantization-aware training".
"""

from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from pruneonce.batch import Batch, inputs
from pruneonce.sparsity.masks import MaskedLinear, body

TINY = 1e-8  # floor of a scale: a fully pruned row has maximum 0, a constant activation range 0


@torch.library.custom_op("pruneonce::fake_quantize_activation", mutates_args=())
def fake_quantize_activation(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """x rounded to the uint8 grid of the tensor and back. scale float[], zero_point uint8[]. Gradient: 1 inside, else 0."""
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero_point.int(), 0, 255).to(x.dtype)


@torch.library.custom_op("pruneonce::fake_quantize_weight", mutates_args=())
def fake_quantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """weight float[out, in] rounded to the int8 grid of its row and back. scale float[out]. Gradient: 1."""
    zero_points = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero_points, 0, -127, 127)


@fake_quantize_activation.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(x)


@fake_quantize_weight.register_fake
def _(weight: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(weight)


def _keep_activation(ctx, inputs, output) -> None:
    x, scale, zero_point = inputs
    offset = zero_point.float()
    ctx.save_for_backward((x >= (-0.5 - offset) * scale) & (x <= (255.5 - offset) * scale))


fake_quantize_activation.register_autograd(
    lambda ctx, grad: (grad * ctx.saved_tensors[0], None, None), setup_context=_keep_activation
)
fake_quantize_weight.register_autograd(lambda ctx, grad: (grad, None))


def weight_scale(weight: Tensor, bits: int = 8) -> Tensor:
    """float[out]: the largest |weight| of each row / (2^(bits - 1) - 1), never 0. bits: 8 or 7."""
    return (weight.detach().abs().amax(dim=1) / (2 ** (bits - 1) - 1)).clamp(min=TINY)


def quantize_weight(weight: Tensor, bits: int = 8) -> Tensor:
    """int8[out, in]: the integers that `fake_quantize_weight` stands for."""
    scale = weight_scale(weight, bits)  # through the operator itself: w / scale and w * (1 / scale) can round apart
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


@dequantize_weight.register_fake
def _(weight: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(weight, dtype=torch.float32)


def _extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of x, float[] each, over all processes: each sees a share of the batch."""
    low, high = (v.float() for v in x.detach().aminmax())
    if distributed.is_available() and distributed.is_initialized():
        both = torch.stack([-low, high])
        distributed.all_reduce(both, distributed.ReduceOp.MAX)
        low, high = -both[0], both[1]
    return low, high


class FakeQuantLinear(MaskedLinear):
    """A masked linear whose input and weight are rounded to int8 first, while `rounds` is on; before, it is a masked linear.

    `observe` is on while ranges may move: with the extremes of a batch, whichever processes share it.
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
        """Moving average of minimum and maximum; the first tensor sets it."""
        low, high = _extremes(x)
        share = self.momentum if self.high > self.low else 1.0
        self.low.lerp_(low, share)
        self.high.lerp_(high, share)

    def forward(self, x: Tensor) -> Tensor:
        if self.observe:
            self._update(x)
        if not self.rounds:
            return super().forward(x)
        x = fake_quantize_activation(x, *activation_grid(self.low, self.high))
        weight = self.effective_weight
        return F.linear(x, fake_quantize_weight(weight, weight_scale(weight, self.weight_bits)), self.bias)


class Int8Linear(nn.Module):
    """What ships: int8 weight, its scale, the grid of the input. Computes what a frozen FakeQuantLinear computes."""

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
    """Replace, in place, every fake-quantized linear by the integers it stands for. Returns them by name."""
    made = {name: Int8Linear(linear) for name, linear in quantized_linears(model).items()}
    for name, linear in made.items():
        body(model).set_submodule(name, linear)
    return made


def quantized_linears(model: nn.Module) -> dict[str, FakeQuantLinear]:
    """Every fake-quantized linear by its name in the model's body."""
    return {name: m for name, m in body(model).named_modules() if isinstance(m, FakeQuantLinear)}


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Batch], *, engine: Accelerator) -> None:
    """Find the first ranges: the model reads the batches, every range moves, nothing is trained.

    The batches are the same on every process, and so are the ranges.
    """
    for batch in batches:
        with engine.autocast():
            model(**{name: tensor.to(engine.device) for name, tensor in inputs(batch).items()})


def observe(model: nn.Module, on: bool) -> None:
    """Let the activation ranges move, or freeze them."""
    for linear in quantized_linears(model).values():
        linear.observe = on


def round_operands(model: nn.Module, on: bool) -> None:
    """Compute on the integer grids, or, before quantization-aware training begins, on the floats they stand for."""
    for linear in quantized_linears(model).values():
        linear.rounds = on


def aware(
    model: nn.Module, *, steps: int, begin_ratio: float, freeze_ranges_ratio: float
) -> Callable[[int], dict[str, float]]:
    """What to do before a step: operands are rounded from one share of the steps on, ranges move up to another."""

    def before_step(step: int) -> dict[str, float]:
        observe(model, step < freeze_ranges_ratio * steps)
        round_operands(model, step >= begin_ratio * steps)
        return {}

    return before_step


def settle(model: nn.Module) -> None:
    """From here on the model computes what ships: ranges are frozen, operands rounded."""
    observe(model, False)
    round_operands(model, True)


def ranges(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Activation range (low, high) of every fake-quantized linear, by name: what a checkpoint needs besides weights."""
    return {name: (float(m.low), float(m.high)) for name, m in quantized_linears(model).items()}


def load_ranges(model: nn.Module, saved: dict[str, tuple[float, float]]) -> None:
    """Put saved ranges back and freeze them. Raises KeyError if a layer has none."""
    for name, linear in quantized_linears(model).items():
        linear.low.fill_(saved[name][0])
        linear.high.fill_(saved[name][1])
    observe(model, False)
