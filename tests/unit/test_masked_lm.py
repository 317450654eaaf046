"""Masked language modelling on a tiny BERT, against the full forward."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForMaskedLM

from pruneonce.batch import IGNORED
from pruneonce.distillation.losses import attention_loss, hidden_loss, soft_loss
from pruneonce.errors import ModelError
from pruneonce.language import blocks, corpus, segments
from pruneonce.language import masked_lm as mlm
from pruneonce.models import checkpoint
from pruneonce.sparsity import masks
from tests.conftest import TINY, distillation, random_masked_lm

WEIGHTS = {"hard_weight": 0.5, "soft_weight": 0.5, "hidden_weight": 2.0, "temperature": 2.0, "everywhere": True}


def distilled_loss(teacher, *, everywhere: bool, **weights):
    positions = mlm.SOFT_POSITIONS["all" if everywhere else "masked"]
    return mlm.distilled_loss(teacher, distillation(**weights), soft_positions=positions)


@pytest.fixture
def masked(batch):
    """Two chosen positions a row, never padding."""
    labels = torch.full_like(batch["input_ids"], IGNORED)
    labels[:, [1, 4]] = torch.tensor([[7, 8], [9, 10], [11, 12], [13, 14]])
    return batch | {"labels": labels}


def full(model, batch):
    with torch.no_grad():
        return model(batch["input_ids"], batch["attention_mask"], output_hidden_states=True)


def test_head_at_leads_to_the_full_logits_at_these_positions(masked_lm, masked):
    positions = masked["labels"] != IGNORED
    head, out = mlm.head_at(masked_lm, masked, positions, output_hidden_states=True)
    wanted = full(masked_lm, masked)
    logits = F.linear(*head)
    torch.testing.assert_close(logits, wanted.logits[positions], atol=1e-5, rtol=1e-5)
    assert logits.shape == (8, 162)
    assert head.weight is masked_lm.get_input_embeddings().weight
    assert len(out.hidden_states) == 3
    for ours, theirs in zip(out.hidden_states[1:], wanted.hidden_states[1:], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert full(masked_lm, masked).logits.shape == (4, 10, 162)  # the hooks are gone


def test_a_model_without_a_masked_lms_head_is_refused(classifier, masked):
    with pytest.raises(ModelError, match="BertForSequenceClassification"):
        mlm.head_at(classifier, masked, masked["attention_mask"].bool())


def test_a_head_that_goes_on_behind_its_last_linear_is_refused(masked):
    """DeBERTa's own head: what it calls its output embeddings is a linear before them."""
    sizes = {"vocab_size": 162, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model("deberta-v2", **sizes, legacy=False))
    with pytest.raises(
        ModelError, match="expected a masked LM that ends in its output embeddings, found DebertaV2ForMaskedLM"
    ):
        mlm.head_at(model, masked, masked["attention_mask"].bool())


def test_the_hard_loss_is_cross_entropy_of_the_masked_tokens(masked_lm, masked):
    chosen = masked["labels"] != IGNORED
    found = mlm.hard_loss(masked_lm, masked)["loss"]
    wanted = masked_lm(masked["input_ids"], masked["attention_mask"]).logits[chosen]
    torch.testing.assert_close(found, F.cross_entropy(wanted, masked["labels"][chosen]))


@pytest.mark.parametrize("everywhere", [True, False])
def test_gradients_are_those_of_whole_logits(masked, everywhere):
    """Also of the embedding, which is the last linear's weight too."""

    def whole(student, teacher):
        ours, theirs = student(masked["input_ids"], masked["attention_mask"]).logits, full(teacher, masked).logits
        chosen = masked["labels"] != IGNORED
        read = masked["attention_mask"].bool() if everywhere else chosen
        soft = soft_loss(ours[read], theirs[read], 2.0)
        return 0.5 * F.cross_entropy(ours[chosen], masked["labels"][chosen]) + 0.5 * soft

    one, other, teacher = random_masked_lm(), random_masked_lm(), random_masked_lm(1)
    weights = WEIGHTS | {"everywhere": everywhere, "hidden_weight": 0.0}
    distilled_loss(teacher, **weights)(one, masked)["loss"].backward()
    whole(other, teacher).backward()
    compared = 0
    for (name, found), wanted in zip(one.named_parameters(), other.parameters(), strict=True):
        if wanted.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, atol=1e-6, rtol=1e-4, msg=name)
            compared += 1
    assert compared >= 40


def test_a_batch_without_a_masked_token_has_loss_0(masked_lm, masked):
    """Short blocks in small batches meet it; the mean over nothing would stop the run."""
    empty = masked | {"labels": torch.full_like(masked["labels"], IGNORED)}
    parts = distilled_loss(random_masked_lm(1), **WEIGHTS | {"soft_weight": 0.0})(masked_lm, empty)
    assert float(parts["hard"].detach()) == 0
    parts["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in masked_lm.parameters() if p.grad is not None)


@pytest.mark.parametrize("everywhere", [True, False])
def test_the_distilled_loss_is_the_weighted_sum_of_its_parts(masked_lm, masked, everywhere):
    teacher = random_masked_lm(1)
    parts = distilled_loss(teacher, **WEIGHTS | {"everywhere": everywhere})(masked_lm, masked)
    ours, theirs = full(masked_lm, masked), full(teacher, masked)
    chosen = masked["labels"] != IGNORED
    read = masked["attention_mask"].bool() if everywhere else chosen
    expected = {
        "hard": F.cross_entropy(ours.logits[chosen], masked["labels"][chosen]),
        "soft": soft_loss(ours.logits[read], theirs.logits[read], 2.0),
        "hidden": hidden_loss(ours.hidden_states[1:], theirs.hidden_states[1:], masked["attention_mask"]),
    }
    for key, value in expected.items():
        torch.testing.assert_close(parts[key].detach(), value, atol=1e-5, rtol=1e-5)
    total = 0.5 * expected["hard"] + 0.5 * expected["soft"] + 2 * expected["hidden"]
    torch.testing.assert_close(parts["loss"].detach(), total, atol=1e-5, rtol=1e-5)


def test_parts_of_no_weight_are_not_computed(masked_lm, masked):
    teacher = random_masked_lm(1)
    parts = distilled_loss(teacher, **WEIGHTS | {"soft_weight": 0.0, "hidden_weight": 0.0})(masked_lm, masked)
    assert set(parts) == {"loss", "hard"}
    torch.testing.assert_close(parts["loss"], 0.5 * parts["hard"])


def test_fault_5_the_teacher_is_no_part_of_the_student(masked_lm, masked):
    teacher, names = random_masked_lm(1), set(masked_lm.state_dict())
    distilled_loss(teacher, **WEIGHTS)(masked_lm, masked)["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for n, p in masked_lm.named_parameters() if n.startswith("bert.encoder"))
    assert set(masked_lm.state_dict()) == names
    assert not set(masked_lm.modules()) & set(teacher.modules())


def test_the_teacher_itself_has_no_soft_and_no_hidden_loss(masked_lm, masked):
    parts = distilled_loss(random_masked_lm(0), **WEIGHTS)(masked_lm, masked)
    assert float(parts["soft"].detach()) == pytest.approx(0, abs=1e-5)
    assert float(parts["hidden"].detach()) == pytest.approx(0, abs=1e-8)


def pretraining_lm(seed: int):
    """A BERT with both heads."""
    torch.manual_seed(seed)
    columns = ("tokens", "next_sentence_label")
    return checkpoint.random_masked_lm(TINY / "model", attention="eager", dropout=0.0, columns=columns).eval()


@pytest.fixture
def paired(masked):
    """Segments of four tokens and what the row's padding leaves."""
    kinds = (torch.arange(10) >= 4).long() * masked["attention_mask"]
    return masked | {"token_type_ids": kinds, "next_sentence_label": torch.tensor([0, 1, 1, 0])}


def whole(model, batch):
    names = ("input_ids", "attention_mask", "token_type_ids")
    return model(**{name: batch[name] for name in names}, output_hidden_states=True, output_attentions=True)


def cross_entropy(logits, labels) -> float:
    """Its definition, in float64."""
    logits = logits.detach().double()
    return float((logits.logsumexp(-1) - logits[torch.arange(len(labels)), labels]).mean())


def test_the_hard_loss_of_pairs_is_mlm_plus_next_sentence(paired):
    model = pretraining_lm(0)
    found, wanted = mlm.hard_loss(model, paired), whole(model, paired)
    chosen = paired["labels"] != IGNORED
    hard = cross_entropy(wanted.prediction_logits[chosen], paired["labels"][chosen])
    following = cross_entropy(wanted.seq_relationship_logits, paired["next_sentence_label"])
    assert {k: float(v.detach()) for k, v in found.items()} == pytest.approx(
        {"loss": hard + following, "hard": hard, "next_sentence": following}, rel=1e-5
    )
    found["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "position" not in n)


def test_the_distilled_loss_of_pairs_has_every_part_by_name(paired):
    """Hard and soft of both heads, hidden states, attention: each as it is alone, the loss their weighted sum."""
    student, teacher = pretraining_lm(0), pretraining_lm(1)
    weights = {"hard_weight": 0.3, "soft_weight": 0.7, "hidden_weight": 2.0, "attention_weight": 3.0}
    parts = distilled_loss(teacher, **weights, temperature=2.0, everywhere=True)(student, paired)
    with torch.no_grad():
        ours, theirs = whole(student, paired), whole(teacher, paired)
    chosen, mask = paired["labels"] != IGNORED, paired["attention_mask"]
    read = mask.bool()
    expected = {
        "hard": cross_entropy(ours.prediction_logits[chosen], paired["labels"][chosen]),
        "soft": float(soft_loss(ours.prediction_logits[read], theirs.prediction_logits[read], 2.0)),
        "next_sentence": cross_entropy(ours.seq_relationship_logits, paired["next_sentence_label"]),
        "soft_next_sentence": float(soft_loss(ours.seq_relationship_logits, theirs.seq_relationship_logits, 2.0)),
        "hidden": float(hidden_loss(ours.hidden_states[1:], theirs.hidden_states[1:], mask)),
        "attention": float(attention_loss(ours.attentions, theirs.attentions, mask)),
    }
    weight_of = {"hard": 0.3, "soft": 0.7, "next_sentence": 0.3, "soft_next_sentence": 0.7, "hidden": 2.0, "attention": 3.0}
    expected["loss"] = sum(weight_of[name] * part for name, part in expected.items())
    assert {k: float(v.detach()) for k, v in parts.items()} == pytest.approx(expected, rel=1e-4)
    parts["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_without_a_soft_weight_pairs_have_their_hard_losses_only(paired):
    weights = WEIGHTS | {"soft_weight": 0.0, "hidden_weight": 0.0}
    parts = distilled_loss(pretraining_lm(1), **weights)(pretraining_lm(0), paired)
    assert set(parts) == {"loss", "hard", "next_sentence"}
    torch.testing.assert_close(parts["loss"], 0.5 * (parts["hard"] + parts["next_sentence"]))


def test_held_out_pairs_are_also_counted_right_and_wrong(tmp_path, tokenizer, engine):
    documents = [np.array([10 + (7 * i + j) % 140 for j in range(20)]) for i in range(12)]
    segments.write_pairs(
        tmp_path / "p.arrow", documents, tokenizer, block_tokens=16, max_tokens=None, short_ratio=0.1, seed=0
    )
    rows_read = corpus.read_blocks(tmp_path / "p.arrow")
    batches = corpus.MaskedBlocks(rows_read, tokenizer, batch_size=8, probability=0.3, seed=1)
    model = pretraining_lm(3)
    right = rows = 0
    for step in range(3):
        batch = batches(step)
        with torch.no_grad():
            answers = whole(model, batch).seq_relationship_logits.argmax(-1)
        right += int((answers == batch["next_sentence_label"]).sum())
        rows += 8
    found = mlm.held_out(model, batches, engine=engine, limit=3)
    assert found["held_out_next_sentence_accuracy"] == right / rows
    assert math.isfinite(found["held_out_loss"])


@pytest.fixture
def held_out_batches(tmp_path, tokenizer):
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(5, 162, (12, 16), generator=draw).numpy()
    blocks.write_blocks(tmp_path / "b.arrow", [rows], block_tokens=16)
    return corpus.MaskedBlocks(corpus.read_blocks(tmp_path / "b.arrow"), tokenizer, batch_size=4, probability=0.2, seed=1)


@pytest.mark.parametrize(("limit", "batches"), [(2, 2), (100, 3)])
def test_held_out_is_the_mean_over_masked_tokens(masked_lm, engine, held_out_batches, limit, batches):
    total = count = 0.0
    for step in range(batches):
        batch = held_out_batches(step)
        chosen = batch["labels"] != IGNORED
        logits = full(masked_lm, batch).logits[chosen]
        total += float(F.cross_entropy(logits, batch["labels"][chosen], reduction="sum"))
        count += int(chosen.sum())
    masked_lm.train()
    found = mlm.held_out(masked_lm, held_out_batches, engine=engine, limit=limit)
    assert found["held_out_loss"] == pytest.approx(total / count, rel=1e-5)
    assert found["held_out_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert masked_lm.training


def test_held_out_computes_no_more_at_a_time_than_training(masked_lm, make_engine, held_out_batches):
    rows = []
    masked_lm.get_input_embeddings().register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    whole = mlm.held_out(masked_lm, held_out_batches, engine=make_engine(1), limit=3)
    assert rows == [4] * 3
    rows.clear()
    cut = mlm.held_out(masked_lm, held_out_batches, engine=make_engine(2), limit=3)
    assert rows == [2] * 6
    assert cut["held_out_loss"] == pytest.approx(whole["held_out_loss"], rel=1e-5)


def test_gradient_checkpointing_costs_time_and_not_the_gradient(masked):
    """Through the hook that picks positions, the hidden states, the attention and the masked linears."""
    weights = WEIGHTS | {"attention_weight": 1.0}

    def gradients(model):
        masks.mask_linears(model, r"^encoder\.")
        masks.prune(model, 0.5)
        distilled_loss(random_masked_lm(1), **weights)(model.train(), masked)["loss"].backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, recomputing = random_masked_lm(), random_masked_lm()
    recomputing.gradient_checkpointing_enable({"use_reentrant": False})
    expected, found = gradients(plain), gradients(recomputing)
    assert recomputing.is_gradient_checkpointing
    assert len(expected) >= 30
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
