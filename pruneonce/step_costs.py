"""The costs of a training step, from a model's configuration alone: FLOPs, memory, bytes of files. Nothing is trained.

FLOPs. torch counts the matrix products of a forward, over tensors without values. A backward is two forwards.
Not counted: elementwise work, a task's own head, and what gradient checkpointing computes again.

Memory. See `memory`. The tests count the bytes of every live tensor in real steps.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    MODEL_FOR_PRETRAINING_MAPPING,
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    PretrainedConfig,
    PreTrainedModel,
)

from pruneonce.distillation.vocabulary import PIECE, TILE
from pruneonce.errors import ModelError
from pruneonce.language import segments
from pruneonce.models import checkpoint, configuration
from pruneonce.sparsity.masks import body

MOST_UNITS = 10_000_000  # of a layer, of a vocabulary
MOST_MODULES = 1_000  # that a model builds one by one
COUNTS_OF_MODULES = ("layer", "group", "labels", "heads")  # parts of such a count's name in the configuration


@dataclass(frozen=True)
class Shape:
    """The sizes of a masked LM that its costs depend on."""

    layers: int
    hidden: int
    feed_forward: int  # outputs of the widest linear of the body
    heads: int
    vocabulary: int
    positions: int  # tokens of the longest row
    parameters: int
    prunable: int  # weights
    dropout: bool  # whether the configuration has a rate above 0


@dataclass(frozen=True)
class ForwardFlops:
    """FLOPs of one forward."""

    body: float  # of all rows
    head: float  # of each position whose logits a loss reads


def build(facts: Mapping[str, Any]) -> PreTrainedModel:
    """The masked LM of a configuration's facts (`model_type`, `hidden_size`, ...) on the meta device: it takes no memory.

    Raises ModelError if transformers knows no such model, or cannot build it.
    """
    return _build(facts, lambda config: AutoModelForMaskedLM)


def build_for_pairs(facts: Mapping[str, Any]) -> PreTrainedModel:
    """As `build`, with the next-sentence head, and so the pooler, for a corpus of segment pairs.

    Raises ModelError also if the model has no such head.
    """
    known = MODEL_FOR_PRETRAINING_MAPPING  # ModernBERT is not in it
    model = _build(facts, lambda config: AutoModelForPreTraining if type(config) in known else AutoModelForMaskedLM)
    checkpoint.check_columns(model, segments.schema(1).names)
    return model


def _build(facts: Mapping[str, Any], auto_class: Callable[[PretrainedConfig], Any]) -> PreTrainedModel:
    """The model on the meta device. auto_class: transformers' Auto class for its configuration. Raises ModelError."""
    _check_bounds(facts)
    try:
        config = AutoConfig.for_model(**facts)
        configuration.check_sizes(config, "the facts of the model")
        with torch.device("meta"):
            return auto_class(config).from_config(config, attn_implementation="eager", trust_remote_code=False)
    except Exception as error:  # transformers checks some sizes; others fail where they are first used
        raise ModelError(
            f"expected the configuration of a masked LM, found {dict(facts)}: {type(error).__name__}: {error}"
        ) from None


def _check_bounds(facts: Mapping[str, Any]) -> None:
    """Raise ModelError for a size that no model has: to build such a model would take forever."""
    for key, value in facts.items():
        most = MOST_MODULES if any(part in key for part in COUNTS_OF_MODULES) else MOST_UNITS
        if isinstance(value, int) and not -1 <= value <= most:  # -1 is transformers' value for none
            raise ModelError(f"expected {key} of a model from 0 to {most:,}, found {value}. Correct its config.json.")


def shape(model: PreTrainedModel, prunable: Mapping[str, nn.Linear]) -> Shape:
    """The sizes of the model. Raises ModelError if its configuration or its body does not have one of them."""
    config = model.config
    try:
        return Shape(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            feed_forward=max(m.out_features for m in body(model).modules() if isinstance(m, nn.Linear)),
            heads=config.num_attention_heads,
            vocabulary=config.vocab_size,
            positions=configuration.longest(model) or config.max_position_embeddings,
            parameters=sum(p.numel() for p in model.parameters()),
            prunable=sum(m.weight.numel() for m in prunable.values()),
            dropout=any("drop" in k and isinstance(v, float) and v > 0 for k, v in config.to_dict().items()),
        )
    except (AttributeError, ValueError) as error:
        name = type(model).__name__
        raise ModelError(
            f"expected a model of layers with a known size, found {name}: {error!r}. Choose another one."
        ) from None


def forward_flops(model: PreTrainedModel, *, rows: int, length: int) -> ForwardFlops:
    """FLOPs of one forward of a model that `build` made, over int64[rows, length].

    They are nan for a model whose code reads values of its input, as XLM's and Longformer's: there are none.
    """
    inside = math.nan
    try:
        fake = FakeTensorMode(allow_non_fake_inputs=True)  # transformers looks for padding in tensors that are not fake
        with fake, torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:

            def after_body(*_: object) -> None:
                nonlocal inside
                inside = counter.get_total_flops()

            with body(model).register_forward_hook(after_body):
                model(input_ids=torch.zeros(rows, length, dtype=torch.int64))
    except Exception:  # of each architecture another one
        return ForwardFlops(inside, math.nan)
    return ForwardFlops(inside, (counter.get_total_flops() - inside) / (rows * length))


def step_flops(forward: ForwardFlops, *, read: float, teacher_read: float | None) -> float:
    """FLOPs of one step: the student's forward and backward, and the teacher's forward.

    read, teacher_read: positions with logits of the student and of the teacher; teacher_read is None without a teacher.
    """
    student = 3 * (forward.body + read * forward.head)
    return student if teacher_read is None else student + forward.body + teacher_read * forward.head


@dataclass(frozen=True)
class Piece:
    """The piece of a batch that one device computes at a time, and how it computes it."""

    rows: int
    length: int
    read: float  # positions whose logits a loss reads; 0 for a task, whose loss reads no vocabulary
    tile: int  # rows of logits that become a gradient at a time
    element: int  # bytes: 2 in bf16, 4 in fp32
    probabilities: int  # copies of attention's probabilities: 0 with a fused kernel, 1 eager, 3 eager with dropout
    dropouts: int  # copies of float[tokens, hidden] that a layer keeps for dropout: 2 with dropout, else 0
    teacher: bool  # its weights are in memory
    soft: bool  # the teacher's logits at the same positions
    hidden: bool  # hidden states of student and teacher are compared
    quantized: bool  # inputs and weights are fake-quantized
    checkpointing: bool  # of gradients
    accumulates: bool  # gradients of an earlier piece are in memory
    processes: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def tile(device: str) -> int:
    """Rows of logits that become a gradient at a time: few on a CPU, a whole piece elsewhere. `auto` counts as a GPU."""
    return TILE if device == "cpu" else PIECE


def memory(s: Shape, p: Piece) -> dict[str, float]:
    """Bytes of a training step by part, and their `peak`. Weights, moments and gradients are fp32.

    model       weights, two moments of Adam, masks, and the teacher's weights
    gradients   with several processes once more, in the buckets that are summed over them (DistributedDataParallel)
    layers      what the backward reads; with gradient checkpointing only the input of each layer
    passing     the larger one of two that never exist together: a layer of the teacher, and the loss

    A backward frees layers while it makes gradients, so the peak is at its start or at its end. Near the end there are
    all gradients, and one layer or the sums of the embeddings' gradients.
    Not counted: biases, statistics of normalisations, fragmentation, the allocator's reserve, libraries' workspaces.
    With dropout it is an upper bound on a GPU, whose mask has 1 byte an element. A CPU's has `element` bytes.
    """
    model = 12 * s.parameters + s.prunable + (4 * s.parameters if p.teacher else 0)
    gradients = 4 * s.parameters * (1 if p.processes == 1 else 2)
    layer = _layer_bytes(s, p)
    layers = (4 * p.tokens * s.hidden if p.checkpointing else layer) * s.layers + _edge_bytes(s, p)
    passing = _cast_bytes(s, p) + max(_teacher_layer_bytes(s, p), _loss_bytes(s, p))
    start = layers + passing + (gradients if p.accumulates or p.processes > 1 else 0)
    last_layer = layer + 4 * p.tokens * (s.feed_forward + s.hidden) - 4 * s.prunable / s.layers  # it has no gradients yet
    end = gradients + max(3 * _vocabulary_bytes(s, p, element=4), last_layer)
    parts = {"model": model, "gradients": gradients, "layers": layers, "passing": passing}
    return parts | {"peak": model + max(start, end)}


def _layer_bytes(s: Shape, p: Piece) -> float:
    """What the backward of one layer reads."""
    products = (6 * s.hidden + 2 * s.feed_forward) * p.element  # q, k, v, the inputs of products, around the activation
    normalised = 8 * s.hidden  # the inputs of two normalisations, fp32
    copies = 2 * s.hidden * p.element if p.element < 4 or p.quantized else 0  # of query, key and value, cast or rounded
    clamped = 5 * s.hidden + s.feed_forward if p.quantized else 0  # a byte an element: where rounding clamped it
    dropouts = p.dropouts * s.hidden * p.element
    weights = s.prunable / s.layers * p.element  # the weights in use: masked, cast or rounded
    attention = _attention_bytes(s, p) * p.probabilities
    return p.tokens * (products + normalised + copies + clamped + dropouts) + attention + weights


def _attention_bytes(s: Shape, p: Piece) -> int:
    """One copy of a layer's attention probabilities."""
    return p.rows * s.heads * p.length**2 * p.element


def _edge_bytes(s: Shape, p: Piece) -> float:
    """What the backward reads outside the layers: the embeddings' normalisation, the head, compared hidden states."""
    states = (4 if p.element == 4 else 8) * p.tokens * s.hidden * s.layers if p.hidden else 0
    pooled = 4 * p.tokens * s.hidden if not p.read and p.element == 4 else 0  # a task's last hidden states
    return 4 * p.tokens * s.hidden + 4 * p.read * s.hidden * p.element + states + pooled


def _teacher_layer_bytes(s: Shape, p: Piece) -> int:
    """The most that passes through a layer of the teacher, whose residual stream is fp32."""
    activation = 2 * s.feed_forward * p.element + 12 * s.hidden
    normalisation = (s.feed_forward + s.hidden) * p.element + 20 * s.hidden
    return p.tokens * max(activation, normalisation) + (_attention_bytes(s, p) if p.probabilities else 0)


def _vocabulary_bytes(s: Shape, p: Piece, *, element: int) -> int:
    """A matrix of the size of the last linear; 0 for a task."""
    return s.hidden * s.vocabulary * element if p.read else 0


def _cast_bytes(s: Shape, p: Piece) -> int:
    """The copy of the last linear in autocast's cache."""
    return _vocabulary_bytes(s, p, element=p.element) if p.element < 4 else 0


def _loss_bytes(s: Shape, p: Piece) -> float:
    """The loss over the vocabulary: logits, features and a cast weight of each side, the gradient, the tiles in work.

    Logits become a gradient tile by tile. In fp32 there are tiles of logits, of their quotients by the temperature, of two
    softmaxes, and of the gradient, now and before. At the end there is the product that is added to the gradient of the
    last linear.
    """
    sides = 2 if p.soft else 1  # student and teacher
    one_side = (min(p.read, PIECE) * s.vocabulary + p.read * s.hidden) * p.element + _cast_bytes(s, p)
    one_tile = 4 * min(p.read, p.tile) * s.vocabulary
    tiles = (8 if p.soft else 5) * one_tile
    product = _vocabulary_bytes(s, p, element=p.element) + sides * one_tile
    return _vocabulary_bytes(s, p, element=4) + sides * one_side + max(tiles, product)


def file_bytes(s: Shape) -> dict[str, float]:
    """Bytes of files: a checkpoint in fp32, a resumable run with Adam's moments and masks, ONNX (int8: about)."""
    return {
        "checkpoint": 4 * s.parameters,
        "run under way": 12 * s.parameters + s.prunable,
        "ONNX fp32": 4 * s.parameters,
        "ONNX int8": s.parameters,
    }
