"""How like its teacher a student is: against sums over single texts, and where the answer is known."""

import pytest
import torch
from scipy.stats import spearmanr

from pruneonce.language import likeness as likeness_module
from pruneonce.language.likeness import likeness
from tests.conftest import random_masked_lm, token_batch

BATCHES = [token_batch(seed) for seed in (1, 2, 3)]  # of four rows each, some with padding


def by_text(model):
    """The last layers' states of every text by itself, without padding."""
    found = []
    for batch in BATCHES:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            ids = ids[: int(mask.sum())].unsqueeze(0)
            with torch.no_grad():
                out = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
            found.append(torch.stack(out.hidden_states[1:])[:, 0])
    return found


def test_it_is_its_definition_whatever_the_pieces(make_engine):
    student, teacher = random_masked_lm(1), random_masked_lm(2)
    ours, theirs = by_text(student), by_text(teacher)
    error = sum((a - b).square().sum((1, 2)) for a, b in zip(ours, theirs, strict=True))
    size = sum(b.square().sum((1, 2)) for b in theirs)
    alike = []
    for states in (ours, theirs):
        vectors = [s[-1].mean(0) for s in states]
        pairs = [(i, j) for i in range(12) for j in range(i + 1, 12)]
        alike.append([float(torch.cosine_similarity(vectors[i], vectors[j], dim=0)) for i, j in pairs])
    wanted = {"hidden_error": float((error / size).mean()), "similarity": spearmanr(*alike).statistic}
    for micro_batches in (1, 2):
        found = likeness(student, teacher, BATCHES, engine=make_engine(micro_batches))
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-3)


def test_of_many_texts_the_first_ones_are_compared(make_engine, monkeypatch):
    """Pairs grow with the square of the texts: a recipe for GPUs has 25,600 held-out rows."""
    student, teacher, engine = random_masked_lm(1), random_masked_lm(2), make_engine(1)
    few = likeness_module.likeness(student, teacher, BATCHES[:2], engine=engine)["similarity"]
    monkeypatch.setattr(likeness_module, "TEXTS", 8)
    assert likeness_module.likeness(student, teacher, BATCHES, engine=engine)["similarity"] == pytest.approx(few, abs=1e-3)
    monkeypatch.setattr(likeness_module, "TEXTS", 12)
    assert likeness_module.likeness(student, teacher, BATCHES, engine=engine)["similarity"] != pytest.approx(few, abs=1e-3)


def test_a_model_is_like_itself_and_stays_in_training(make_engine):
    model = random_masked_lm(1).train()
    found = likeness(model, random_masked_lm(1), BATCHES, engine=make_engine(1))
    assert found == pytest.approx({"hidden_error": 0.0, "similarity": 1.0}, abs=1e-5)
    assert model.training


def test_where_all_texts_are_alike_there_is_no_order(make_engine):
    same = [{name: values[:1].repeat(3, 1) if values.ndim > 1 else values for name, values in BATCHES[0].items()}]
    for texts in (3, 2, 1):
        batches = [{name: values[:texts] for name, values in same[0].items()}]
        assert likeness(random_masked_lm(1), random_masked_lm(2), batches, engine=make_engine(1))["similarity"] == 0.0
