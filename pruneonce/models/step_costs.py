"""What a training step of a model costs, from its shape alone: products, memory, bytes. Nothing is trained.

Products. A linear with w weights takes 2 w FLOPs a token, attention 4 l h a token and layer (scores, and their use). With
`body` the weights that every token passes and `head` those it passes where a loss reads logits,

    forward   n (2 body + 4 L l h) + 2 m head            n tokens, m of them read, rows of l tokens, L layers, hidden h
    step      3 forward of the student + forward of the teacher; a backward is two forwards

DeBERTa's tables of relative positions, r rows in all, pass query and key and meet every token: 2 L r h (n + h) more.

What checkpointing computes again does not count. Elementwise work and a task's own head are left out: the one is not
counted by torch's FlopCounterMode, which the tests compare with, the other is less than 0.1 %.

Memory. See `memory`; the tests count the bytes of every live tensor in real steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_PRETRAINING_MAPPING,
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    PreTrainedModel,
)

from pruneonce.distillation.vocabulary import PIECE, TILE
from pruneonce.errors import ModelError
from pruneonce.language import segments
from pruneonce.models import checkpoint, configuration
from pruneonce.sources import tables
from pruneonce.sparsity.masks import body

MOST_UNITS = 10_000_000  # of a layer, of a vocabulary
MOST_PARTS = 1_000  # of what a model is made of one by one, by a part of its name in the configuration
PARTS = ("layer", "group", "labels", "heads")


@dataclass(frozen=True)
class Shape:
    """What of a masked LM its cost hangs on; counts of weights, layers and units."""

    layers: int
    hidden: int
    feed_forward: int  # the widest linear of the body
    heads: int
    vocabulary: int
    positions: int  # the longest row
    relative: int  # rows of tables of relative positions that every layer multiplies with: DeBERTa's; else 0
    parameters: int
    prunable: int
    body: int  # weights that every token passes
    head: int  # weights that a token passes where a loss reads logits
    dropout: bool  # of the configuration


def text_bytes(path: Path, column: str) -> int:
    """Bytes of a file of rows; of parquet, those of this column before compression."""
    if path.suffix != ".parquet":
        return path.stat().st_size
    return tables.column_bytes(path, column)


def build(facts: Mapping[str, Any], *, next_sentence: bool = False) -> PreTrainedModel:
    """The masked LM of a configuration's facts (`model_type`, `hidden_size`, ...), on the meta device: without memory.

    next_sentence: with the head, and so the pooler, for a corpus of segment pairs.
    Raises ModelError if transformers knows no such model or cannot build it, or the model has no such head.
    """
    _check_bounds(facts)
    try:
        config = AutoConfig.for_model(**facts)
        configuration.check_sizes(config, "the facts of the model")
        with torch.device("meta"):
            whole = next_sentence and type(config) in MODEL_FOR_PRETRAINING_MAPPING  # ModernBERT is not
            architecture = AutoModelForPreTraining if whole else AutoModelForMaskedLM
            model = architecture.from_config(config, attn_implementation="eager", trust_remote_code=False)
    except Exception as error:  # transformers checks some sizes; the others end wherever they are first used
        raise ModelError(
            f"expected the configuration of a masked LM, found {dict(facts)}: {type(error).__name__}: {error}"
        ) from None
    if next_sentence:
        checkpoint.check_columns(model, segments.schema(1).names)
    return model


def _check_bounds(facts: Mapping[str, Any]) -> None:
    """Raises ModelError for a size that no model has: of these modules, or names of labels, even a plan is never done."""
    for key, value in facts.items():
        most = MOST_PARTS if any(word in key for word in PARTS) else MOST_UNITS
        if isinstance(value, int) and not -1 <= value <= most:  # -1: transformers' word for none
            raise ModelError(f"expected {key} of a model from 0 to {most:,}, found {value}. Mend its config.json.")


def shape(model: PreTrainedModel, prunable: Mapping[str, nn.Linear]) -> Shape:
    """Read off the model. Raises ModelError for one without layers, or whose configuration does not say its sizes."""
    try:
        return _shape(model, prunable)
    except (AttributeError, StopIteration, ValueError, ZeroDivisionError) as error:
        name = type(model).__name__
        raise ModelError(
            f"expected a model of layers with a known size, found {name}: {error!r}. Choose another one."
        ) from None


def _shape(model: PreTrainedModel, prunable: Mapping[str, nn.Linear]) -> Shape:
    config = model.config
    inside = [m for m in body(model).modules() if isinstance(m, nn.Linear)]
    layers = next(m for m in body(model).modules() if isinstance(m, nn.ModuleList))
    passes = config.num_hidden_layers // len(layers)  # of a token through each: ALBERT's one layer is all of them
    within = _weights(body(model))
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        feed_forward=max(m.out_features for m in inside),
        heads=config.num_attention_heads,
        vocabulary=config.vocab_size,
        positions=configuration.longest(model) or config.max_position_embeddings,
        relative=_relative(model),
        parameters=sum(p.numel() for p in model.parameters()),
        prunable=sum(m.weight.numel() for m in prunable.values()),
        body=within + (passes - 1) * _weights(layers),
        head=_weights(model) - within,
        dropout=any("drop" in k and isinstance(v, float) and v > 0 for k, v in config.to_dict().items()),
    )


def forward_flops(s: Shape, *, tokens: float, length: int, read: float) -> float:
    """FLOPs of one forward over `tokens` in rows of `length`, with logits at `read` positions."""
    positions = 2 * s.layers * s.relative * s.hidden * (tokens + s.hidden)
    return tokens * (2 * s.body + 4 * s.layers * length * s.hidden) + positions + 2 * read * s.head


def step_flops(s: Shape, *, tokens: float, length: int, read: float, teacher_read: float | None) -> float:
    """FLOPs of one step: the student's forward and backward, the teacher's forward (None: there is no teacher)."""
    student = 3 * forward_flops(s, tokens=tokens, length=length, read=read)
    if teacher_read is None:
        return student
    return student + forward_flops(s, tokens=tokens, length=length, read=teacher_read)


def _relative(model: PreTrainedModel) -> int:
    """DeBERTa scores content against position and position against content, each with the whole table."""
    table = sum(m.num_embeddings for name, m in model.named_modules() if name.endswith("rel_embeddings"))
    return table * len(model.config.pos_att_type) if table else 0


def _weights(module: nn.Module) -> int:
    """Of all linears inside, a shared one once."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


@dataclass(frozen=True)
class Piece:
    """What one device computes at a time, and how: one piece of a batch. Bytes an element: 2 in bf16, 4 in fp32."""

    rows: int
    length: int
    read: float  # positions whose logits a loss reads; 0: no vocabulary is involved
    tile: int  # of which so many at a time become a gradient
    element: int
    probabilities: int  # times that attention's probabilities are held: 1 eager, 0 by a fused kernel; 2 more with dropout
    dropouts: int  # times that a float[tokens, hidden] of dropout is held in a layer: 2 with dropout, else 0
    soft: bool  # logits of the teacher at the same positions
    hidden: bool  # hidden states of both are compared
    quantized: bool  # inputs and weights are rounded first
    checkpointing: bool
    accumulates: bool  # gradients of an earlier piece are there
    processes: int


def tile(device: str) -> int:
    """Rows of logits that become a gradient at a time: few on a CPU, all of a piece on a GPU, as which `auto` is planned."""
    return TILE if device == "cpu" else PIECE


def memory(s: Shape, p: Piece, *, teacher: bool) -> dict[str, float]:
    """Bytes of a training step by part, and their `peak`. Weights, moments and gradients are fp32.

    model       12 a parameter (weight, two moments of Adam), 4 for the teacher's, 1 a mask's entry
    gradients   4 a parameter; with several processes 4 more, in the buckets that are summed over them
    layers      what the backward of each layer reads of n tokens; e bytes an element
                    n (6 h + 2 f) e + a l n e + 8 n h + (weights in use) e
                inputs of its products, query, key, value, feed-forward before and after its activation; probabilities;
                inputs of two normalisations in fp32. In bf16 autocast gives query, key and value a copy each: 2 n h e more.
                Rounded inputs are such copies too, and bring a byte an element for where they were clamped.
                and beside them the embeddings' normalisation, 4 r h e for the head up to its last linear at r positions,
                compared hidden states, and in fp32 a task's last hidden states, of which a pooler reads the first
    passing     what is there while all layers are kept, whichever is more: what passes through a layer of the teacher, whose
                residual stream is fp32, and whose probabilities are returned,
                    n max(2 f e + 12 h, (f + h) e + 20 h) + a l n e
                or the loss over v words: logits of one piece of rows of student and teacher, their features, the gradient of
                the last linear, and the walk over t rows at a time in fp32: logits, their quotients by the temperature, two
                softmaxes and their gradient, now and in the tile before,
                    2 min(r, PIECE) v e + 2 r h e + 4 h v + max(8 · 4 min(r, t) v, h v e + 2 · 4 min(r, t) v)
                or, after it, the product that is added to that gradient. Without a teacher's logits 5 for 8, 1 for 2.
                bf16 brings copies of the last linear, h v e each: one in autocast's cache, one a side

    A backward frees layers while it makes gradients: the peak is at its start (all layers) or near its end (all gradients
    but a layer's, and one layer with what passes through it; or all gradients, while those of the embeddings are summed).
    Checkpointing keeps every layer's input instead, and one layer whole.
    Of 18 steps whose live tensors are counted it is about 1 % off, by biases and the statistics of normalisations.
    Not counted: fragmentation, the allocator's reserve, libraries' workspaces. Measured on one process; the buckets of
    several are what DistributedDataParallel documents. On a CPU dropout keeps its mask as e bytes
    an element, on a GPU as 1: there this is an upper bound.
    """
    n, h, f, e = p.rows * p.length, s.hidden, s.feed_forward, p.element
    copies = 2 * n * h * e if e < 4 or p.quantized else 0
    clamped = n * (5 * h + f) if p.quantized else 0
    attention = p.rows * s.heads * p.length**2 * p.probabilities * e
    layer: float = n * (6 * h + 2 * f) * e + copies + clamped + attention + p.dropouts * n * h * e + 8 * n * h
    layer += s.prunable / s.layers * e
    layers = 4 * n * h * s.layers if p.checkpointing else layer * s.layers
    states = (4 if e == 4 else 8) * n * h * s.layers if p.hidden else 0
    pooled = 4 * n * h if not p.read and e == 4 else 0
    edges = 4 * n * h + 4 * p.read * h * e + states + pooled
    through = n * max(2 * f * e + 12 * h, (f + h) * e + 20 * h)  # around its activation, or its last normalisation
    through += p.rows * s.heads * p.length**2 * e if p.probabilities else 0
    sides = 2 if p.soft else 1
    last = 4 * h * s.vocabulary if p.read else 0  # the gradient of the last linear
    cast = h * s.vocabulary * e if p.read and e < 4 else 0  # a copy of it
    walked = 4 * min(p.read, p.tile) * s.vocabulary
    product = h * s.vocabulary * e if p.read else 0
    walk = max((8 if p.soft else 5) * walked, product + sides * walked)
    logits = last + sides * (min(p.read, PIECE) * s.vocabulary * e + cast + p.read * h * e) + walk
    model = 12 * s.parameters + s.prunable + (4 * s.parameters if teacher else 0)
    gradients = 4 * s.parameters * (1 if p.processes == 1 else 2)
    start = layers + edges + cast + max(through, logits) + (gradients if p.accumulates or p.processes > 1 else 0)
    end = gradients + max(3 * last, layer + 4 * n * (f + h) - 4 * s.prunable / s.layers)
    return {
        "model": model,
        "gradients": gradients,
        "layers": layers + edges,
        "passing": cast + max(through, logits),
        "peak": model + max(start, end),
    }


def checkpoint_bytes(s: Shape) -> dict[str, float]:
    """Files: a checkpoint in fp32; the state of a run under way, with Adam's moments and masks; ONNX, int8's about."""
    return {
        "checkpoint": 4 * s.parameters,
        "run under way": 12 * s.parameters + s.prunable,
        "ONNX fp32": 4 * s.parameters,
        "ONNX int8": s.parameters,
    }
