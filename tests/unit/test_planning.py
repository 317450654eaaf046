"""Planned products and memory against measured steps: torch's counter of FLOPs, and the bytes of every live tensor."""

import math
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification

from pruneonce import quantization, step_costs
from pruneonce.batch import IGNORED, inputs
from pruneonce.distillation import losses
from pruneonce.engine import accelerator
from pruneonce.errors import ModelError
from pruneonce.language import corpus, masked_lm
from pruneonce.sparsity import masks
from pruneonce.training import loop
from tests.conftest import Cpu, distillation

BERT = {
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "vocab_size": 400,
    "max_position_embeddings": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
DISTILBERT = {
    "model_type": "distilbert",
    "dim": 96,
    "n_layers": 3,
    "hidden_dim": 384,
    "n_heads": 6,
    "vocab_size": 3000,
    "max_position_embeddings": 128,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
DROPS = {**BERT, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
ALBERT = {**BERT, "model_type": "albert", "embedding_size": 64}
WIDE = {**BERT, "vocab_size": 4000, "num_hidden_layers": 2}
ELECTRA = {**BERT, "model_type": "electra", "embedding_size": 128}
MPNET = {**BERT, "model_type": "mpnet", "vocab_size": 400, "max_position_embeddings": 140}
MODERNBERT = {**BERT, "model_type": "modernbert", "max_position_embeddings": 256, "pad_token_id": 0}
DEBERTA = {
    **BERT,
    "model_type": "deberta-v2",
    "relative_attention": True,
    "position_buckets": 16,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
}
PATTERN = r"^(encoder|transformer|layers)\."
PIECE = step_costs.Piece(
    rows=8,
    length=64,
    read=512,
    tile=step_costs.tile("cpu"),
    element=4,
    probabilities=1,
    dropouts=0,
    teacher=True,
    soft=True,
    hidden=False,
    quantized=False,
    checkpointing=False,
    accumulates=False,
    processes=1,
)


class Live(TorchDispatchMode):
    """Counts the bytes of every storage that is alive, and their peak."""

    def __init__(self, given):
        super().__init__()
        self.alive, self.now, self.peak = set(), 0, 0
        for tensor in given:
            self.note(tensor)

    def note(self, tensor):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.alive:
            self.alive.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.drop, key, storage.nbytes())

    def drop(self, key, size):
        self.alive.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor)
        return out


def models(facts, auto=AutoModelForMaskedLM, attention="eager"):
    """(student with masks, teacher)."""
    config = AutoConfig.for_model(**facts)
    student, teacher = (auto.from_config(config, attn_implementation=attention) for _ in range(2))
    masks.mask_linears(student, PATTERN)
    masks.prune(student, 0.85)
    return student, teacher.eval().requires_grad_(False)


def batch_of(rows, length, vocabulary):
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, vocabulary, (rows, length), generator=draw)
    inputs, labels = corpus.mask_tokens(
        tokens, probability=0.15, mask_token=4, vocabulary=vocabulary, special=[0], generator=draw
    )
    return {"input_ids": inputs, "labels": labels, "attention_mask": torch.ones_like(inputs)}


def forward_of(facts, rows, length):
    return step_costs.forward_flops(step_costs.build(facts), rows=rows, length=length)


def shape_of(facts):
    model = step_costs.build(facts)
    return step_costs.shape(model, masks.prunable(model, PATTERN))


@pytest.mark.parametrize(
    "facts",
    [BERT, DISTILBERT, WIDE, ALBERT, ELECTRA, MPNET, DEBERTA, MODERNBERT],
    ids=["bert", "distilbert", "wide", "albert", "electra", "mpnet", "deberta", "modernbert"],
)
@pytest.mark.parametrize(("rows", "length"), [(2, 16), (3, 128)])
def test_flops_of_a_step_are_those_that_torch_counts(facts, rows, length):
    """Forward and backward of the student, forward of the teacher, both with logits at every position."""
    student, teacher = models(facts)
    batch = inputs(batch_of(rows, length, facts["vocab_size"]))
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            theirs = teacher(**batch).logits
        (student(**batch).logits - theirs).square().sum().backward()
    tokens = rows * length
    planned = step_costs.step_flops(forward_of(facts, rows, length), read=tokens, teacher_read=tokens)
    assert counter.get_total_flops() == planned
    assert planned > 1e7


@pytest.mark.parametrize("facts", [BERT, DISTILBERT], ids=["bert", "distilbert"])
@pytest.mark.parametrize("everywhere", [True, False], ids=["all", "masked"])
def test_flops_of_student_pruning_as_it_runs(facts, everywhere):
    """The pipeline's own loss, which computes logits where they are read only, and their gradient in the forward."""
    student, teacher = models(facts)
    batch = batch_of(4, 64, facts["vocab_size"])
    weights = {"hard_weight": 0.5, "soft_weight": 0.5, "hidden_weight": 0.0, "temperature": 2.0}
    loss = masked_lm.distilled_loss(
        teacher, distillation(**weights), soft_positions=masked_lm.SOFT_POSITIONS["all" if everywhere else "masked"]
    )
    with FlopCounterMode(display=False) as counter:
        loss(student, batch)["loss"].backward()
    read = 256 if everywhere else int((batch["labels"] != IGNORED).sum())
    planned = step_costs.step_flops(forward_of(facts, 4, 64), read=read, teacher_read=read)
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_a_teacher_and_a_head_that_nobody_reads_cost_nothing():
    """2 FLOPs a weight and token, and 4 a pair of tokens of a row and a unit of a layer, for scores and their use."""
    forward, s = forward_of(BERT, 4, 64), shape_of(BERT)
    alone = step_costs.step_flops(forward, read=0, teacher_read=None)
    assert alone == 3 * 256 * (2 * s.prunable + 4 * 4 * 64 * 128)
    assert step_costs.step_flops(forward, read=0, teacher_read=0) == alone * 4 / 3
    assert s.prunable == 4 * (4 * 128 * 128 + 2 * 128 * 512)
    assert forward.head == 2 * (128 * 128 + 128 * 400)


def test_a_pooler_reads_one_token_a_row():
    model = step_costs.build_for_pairs(BERT)
    pooled = step_costs.forward_flops(model, rows=4, length=64).body
    assert pooled - forward_of(BERT, 4, 64).body == 2 * 4 * 128 * 128


@pytest.mark.parametrize("kind", ["convbert", "roformer", "megatron-bert", "xlm-roberta", "xlm"])
def test_flops_of_other_architectures_are_counted_or_not_known(kind):
    """XLM reads the lengths of its rows, which have no values here."""
    forward = forward_of({**BERT, "model_type": kind}, 2, 16)
    assert math.isnan(forward.body) == math.isnan(forward.head) == (kind == "xlm")


def peak(student, teacher, loss, batch, *, precision, micro_batches):
    """Bytes at the highest point of two steps, the second with Adam's moments from its start."""
    AcceleratorState._reset_state(reset_partial_state=True)
    engine = accelerator(Cpu(precision=precision), micro_batches=micro_batches)
    given = [t for model in (student, teacher) for t in (*model.parameters(), *model.buffers())]
    with Live(given) as live:
        loop.fit(
            student,
            lambda step: batch,
            loss,
            engine=engine,
            learning_rate=lambda step: 1e-4,
            steps=2,
            weight_decay=0.01,
            clip_norm=1.0,
            seed=1,
        )
    return live.peak


@pytest.mark.parametrize(
    ("facts", "changes", "precision", "attention"),
    [
        (BERT, {}, "fp32", "eager"),
        (BERT, {"element": 2}, "bf16", "eager"),
        (DISTILBERT, {}, "fp32", "eager"),
        (DISTILBERT, {"element": 2, "probabilities": 0}, "bf16", "sdpa"),
        (WIDE, {"rows": 24, "read": 1536, "element": 2, "probabilities": 0}, "bf16", "sdpa"),
        (BERT, {"rows": 16, "read": 1024, "checkpointing": True}, "fp32", "eager"),
        (BERT, {"rows": 4, "read": 256, "accumulates": True}, "fp32", "eager"),
        (BERT, {"soft": False, "hidden": True}, "fp32", "eager"),
        (DISTILBERT, {"rows": 2, "length": 32, "read": 64}, "fp32", "eager"),
        (DROPS, {"probabilities": 3, "dropouts": 2}, "fp32", "eager"),
        (DROPS, {"probabilities": 3, "dropouts": 2, "element": 2}, "bf16", "eager"),
    ],
    ids=[
        *("bert", "bf16", "distilbert", "sdpa", "vocabulary", "checkpointing", "accumulates", "hidden", "small"),
        *("dropout", "dropout-bf16"),
    ],
)
def test_memory_of_student_pruning_is_what_is_measured(facts, changes, precision, attention):
    piece = replace(PIECE, **changes)
    student, teacher = models(facts, attention=attention)
    if piece.checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    micro = 2 if piece.accumulates else 1
    batch = batch_of(micro * piece.rows, piece.length, facts["vocab_size"])
    if not piece.soft:
        piece = replace(piece, read=int((batch["labels"] != IGNORED).sum()) / micro)
    weights = distillation(hard_weight=0.5, soft_weight=0.5 * piece.soft, hidden_weight=float(piece.hidden))
    loss = masked_lm.distilled_loss(teacher, weights, soft_positions=masked_lm.all_tokens)
    measured = peak(student, teacher, loss, batch, precision=precision, micro_batches=micro)
    planned = step_costs.memory(shape_of(facts), piece)
    assert planned["peak"] == pytest.approx(measured, rel=0.02)
    assert planned["peak"] - planned["model"] == pytest.approx(measured - planned["model"], rel=0.03), (
        "not by the weights alone"
    )


@pytest.mark.parametrize("quantized", [False, True], ids=["finetune", "quantize"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_of_a_step_on_a_task_is_what_is_measured(quantized, precision):
    student, teacher = models({**BERT, "num_labels": 2}, AutoModelForSequenceClassification)
    if quantized:
        masks.bake(student)
        masks.mask_linears(student, PATTERN, partial(quantization.FakeQuantLinear, momentum=0.01))
        masks.lock(student)
    batch = {**batch_of(16, 64, 400), "labels": torch.zeros(16, dtype=torch.int64)}

    def loss(student, batch):
        ours = student(**inputs(batch)).logits  # first, as in `learning.distilled_loss`
        with torch.no_grad():
            theirs = teacher(**inputs(batch)).logits
        return {"loss": losses.soft_loss(ours, theirs, 2.0)}

    measured = peak(student, teacher, loss, batch, precision=precision, micro_batches=1)
    piece = replace(PIECE, rows=16, read=0, element=2 if precision == "bf16" else 4, soft=False, quantized=quantized)
    planned = step_costs.memory(shape_of(BERT), piece)
    assert planned["peak"] == pytest.approx(measured, rel=0.02)


def test_on_a_gpu_the_loss_walks_over_a_whole_piece_of_logits_at_once():
    """No cache to stay in there: eight tensors of so many rows and the vocabulary, in fp32."""
    s = shape_of(WIDE)
    cpu, gpu = (step_costs.memory(s, replace(PIECE, tile=step_costs.tile(at))) for at in ("cpu", "auto"))
    product = 4 * s.hidden * s.vocabulary + 2 * 4 * 16 * s.vocabulary  # what a CPU holds instead, behind the walk
    assert gpu["peak"] - cpu["peak"] == 8 * 4 * PIECE.read * s.vocabulary - product


def test_several_processes_hold_gradients_twice():
    s = shape_of(BERT)
    one, two = (step_costs.memory(s, replace(PIECE, processes=p, teacher=False)) for p in (1, 2))
    assert two["gradients"] == 2 * one["gradients"] == 8 * s.parameters
    assert one["model"] == 12 * s.parameters + s.prunable
    assert two["peak"] > one["peak"]


def test_segment_pairs_bring_a_pooler():
    assert hasattr(step_costs.build_for_pairs(BERT).base_model.pooler, "dense")
    assert step_costs.build(BERT).base_model.pooler is None


@pytest.mark.parametrize("facts", [DISTILBERT, ALBERT, ELECTRA, MPNET, DEBERTA, MODERNBERT], ids=lambda f: f["model_type"])
def test_a_model_without_a_next_sentence_head_is_the_error_that_its_training_would_end_with(facts):
    with pytest.raises(
        ModelError, match=r"without next_sentence_label.*: it has no next-sentence head\. Set prepare_corpus"
    ):
        step_costs.build_for_pairs(facts)


def test_what_is_no_masked_lm_is_an_error():
    with pytest.raises(ModelError, match="expected the configuration of a masked LM"):
        step_costs.build({"model_type": "no-such-model"})
    with pytest.raises(ModelError, match="expected the configuration of a masked LM"):
        step_costs.build({"hidden_size": 8})
    with pytest.raises(ModelError, match="expected the configuration of a masked LM"):
        step_costs.build({"model_type": "vit"})
