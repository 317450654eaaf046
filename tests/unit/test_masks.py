"""Masks, lock and bake on matrices small enough to check by eye."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM

from pruneonce.errors import ModelError, PatternBroken
from pruneonce.sparsity import matrices
from pruneonce.sparsity.masks import (
    MaskedLinear,
    bake,
    check_pattern,
    check_sparsity,
    lock,
    magnitude_mask,
    mask_linears,
    masked_sparsity,
    prunable,
    prune,
    pruned_count,
    sparsity,
)


def linear(weight, bias=True) -> nn.Linear:
    weight = torch.tensor(weight, dtype=torch.float32)
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
    made.weight.data.copy_(weight)
    return made


def test_magnitude_mask_by_hand():
    weight = torch.tensor([[0.3, -0.1, 2.0], [-5.0, 0.2, -0.4]])
    expected = torch.tensor([[False, False, True], [True, False, True]])
    assert torch.equal(magnitude_mask(weight, 0.5), expected)


@pytest.mark.parametrize(("sparsity", "count"), [(0.0, 0), (0.04, 0), (0.06, 1), (0.5, 5), (0.85, 8), (0.95, 10), (1.0, 10)])
def test_fault_3_ties_constant_weights_lose_exactly_k(sparsity, count):
    """`|w| > threshold` would prune all of them."""
    mask = magnitude_mask(torch.full((2, 5), -0.7), sparsity)
    assert int((~mask).sum()) == count
    assert (~mask).flatten()[:count].all()  # ties go to the lower index


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan")])
def test_a_sparsity_outside_of_0_and_1_is_an_error(sparsity):
    with pytest.raises(ValueError, match="sparsity"):
        pruned_count(sparsity, 10)


def test_prunable_is_every_linear_of_the_encoder_and_no_head(masked_lm, classifier):
    names = set(prunable(masked_lm, r"^encoder\."))
    parts = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    parts += ("intermediate.dense", "output.dense")
    assert names == {f"encoder.layer.{i}.{part}" for i in range(2) for part in parts}
    assert set(prunable(classifier, r"^encoder\.")) == names
    assert set(prunable(classifier, "")) == names | {"pooler.dense"}


def test_prunable_by_structure_has_the_pooler_where_the_model_has_one(masked_lm, classifier):
    names = list(prunable(masked_lm, None))
    assert names == list(prunable(masked_lm, r"^encoder\."))
    assert list(prunable(classifier, None)) == [*names, "pooler.dense"]
    assert list(prunable(classifier, names)) == names, "a pooler that came with the task is not pruned"


@pytest.mark.parametrize(
    ("kind", "fields", "weights"),
    [
        ("bert", {}, 84_934_656),
        (
            "bert",
            {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
            301_989_888,
        ),
        ("distilbert", {}, 42_467_328),
        ("albert", {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}, 84_934_656 // 12),
    ],
    ids=["BERT-Base", "BERT-Large", "DistilBERT", "ALBERT-Base"],
)
def test_the_counts_of_the_paper(kind, fields, weights):
    """84.93 M, 301.99 M and 42.47 M; ALBERT's twelve layers are one."""
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(kind, **fields))
    assert sum(m.weight.numel() for m in prunable(model, None).values()) == weights
    rows = matrices.matrices(model, None)
    assert sum(r.weights for r in rows if r.prunable == "yes") == weights
    assert sum(r.weights for r in rows) == sum(p.numel() for p in model.parameters() if p.ndim > 1)
    assert len(matrices.table(rows).splitlines()) == len(rows) + 3 <= 16


def test_the_table_says_why_not(classifier):
    why = {r.name: (r.shape, r.count, r.weights, r.prunable) for r in matrices.matrices(classifier, r"^encoder\..*query")}
    assert why["encoder.layer.*.attention.self.query"] == ((48, 48), 2, 4608, "yes")
    assert why["encoder.layer.*.output.dense"] == ((48, 96), 2, 9216, "no: not selected")
    assert why["embeddings.word_embeddings"][-1] == "no: embeddings"
    assert why["pooler.dense"][-1] == "no: not selected"
    assert why["classifier"] == ((3, 48), 1, 144, "no: head")
    lines = matrices.table(matrices.matrices(classifier, r"^encoder\..*query")).splitlines()
    assert lines[0].split() == ["matrix", "shape", "count", "weights", "prunable"]
    assert lines[-1].split() == ["prunable", "2", "4,608"]


def test_prunable_names_what_is_there_when_nothing_matches(masked_lm):
    with pytest.raises(ModelError, match=r"encoder\.layer\.0\.attention\.self\.query"):
        prunable(masked_lm, "^transformer")
    with pytest.raises(ModelError, match=r"inside its layers.*linears are: 0"):
        prunable(nn.Sequential(nn.Linear(2, 2)), None)
    with pytest.raises(ModelError, match=r"of the names pooler\.dense"):
        prunable(masked_lm, ["encoder.layer.0.output.dense", "pooler.dense"])


def test_a_masked_linear_shares_its_weight_and_multiplies_with_the_mask():
    plain = linear([[1.0, 2.0], [3.0, 4.0]])
    masked = MaskedLinear(plain)
    assert masked.weight is plain.weight
    assert masked.bias is plain.bias
    masked.mask.copy_(torch.tensor([[True, False], [False, True]]))
    x = torch.tensor([[10.0, 100.0]])
    assert torch.equal(masked(x), torch.tensor([[10.0, 400.0]]) + plain.bias)
    masked(x).sum().backward()
    assert torch.equal(masked.weight.grad, torch.tensor([[10.0, 0.0], [0.0, 100.0]]))


def test_a_linear_that_two_layers_share_is_masked_in_both():
    """Pruned wherever it is used, and a plain linear again in all its places."""
    torch.manual_seed(0)
    shared, other = nn.Linear(3, 3), nn.Linear(3, 3)
    model = nn.ModuleList([nn.Sequential(shared), nn.Sequential(other), nn.Sequential(shared)])
    masked = mask_linears(model, r"\.0$")
    assert list(masked) == ["0.0", "1.0"]
    assert model[0][0] is model[2][0] is masked["0.0"]
    prune(model, 1.0)
    x = torch.ones(1, 3)
    assert all(torch.equal(layer(x)[0], layer[0].bias) for layer in model)
    bake(model)
    assert type(model[0][0]) is nn.Linear
    assert model[0][0] is model[2][0]
    assert all(torch.equal(layer(x)[0], layer[0].bias) for layer in model)


def test_a_pruned_weight_comes_back_until_the_pattern_is_locked():
    model = nn.Sequential(linear([[4.0, 3.0, 2.0, 1.0]]))
    masked = mask_linears(model, "0")["0"]
    prune(model, 0.5)
    assert masked.mask.tolist() == [[True, True, False, False]]
    with torch.no_grad():
        masked.weight.copy_(torch.tensor([[1.0, 3.0, 2.0, 0.5]]))
    prune(model, 0.5)
    assert masked.mask.tolist() == [[False, True, True, False]]


def test_pruning_is_uniform_and_counted():
    model = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 4))
    with torch.no_grad():
        model[0].weight.mul_(1000)  # a global threshold would spare this one
    masked = mask_linears(model, "")
    prune(model, 0.7)
    assert {name: int((~m.mask).sum()) for name, m in masked.items()} == {"0": 70, "2": 28}
    assert masked_sparsity(model) == pytest.approx(0.7)


def test_lock_reads_the_zeros():
    model = nn.Sequential(linear([[0.0, 1.0], [-0.0, -2.0]]))
    masked = mask_linears(model, "0")["0"]
    lock(model)
    assert masked.mask.tolist() == [[False, True], [False, True]]


def test_bake_writes_positive_zeros_and_puts_plain_linears_back():
    """A zero with a sign bit is a zero to `==` and noise to a compressor."""
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 2, bias=False))
    mask_linears(model, "")
    prune(model, 0.5)
    masks = {name: m.mask.clone() for name, m in model.named_modules() if isinstance(m, MaskedLinear)}
    before = {name: m.weight.detach().clone() for name, m in model.named_modules() if isinstance(m, MaskedLinear)}
    bake(model)
    assert [type(m) for m in model] == [nn.Linear, nn.Linear]
    assert model[1].bias is None
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        assert torch.equal(weight[mask], before[name][mask])
        assert (weight[~mask].view(torch.int32) == 0).all()
    assert not any("mask" in key for key in model.state_dict())


def test_masks_are_no_part_of_a_checkpoint():
    model = nn.Sequential(nn.Linear(3, 3))
    mask_linears(model, "")
    assert set(model.state_dict()) == {"0.weight", "0.bias"}


def test_check_pattern_names_the_matrix_and_the_count():
    before = {"a": torch.tensor([True, True, False]), "b": torch.tensor([True])}
    check_pattern(before, {"a": torch.tensor([True, True, True]), "b": torch.tensor([True])})
    with pytest.raises(PatternBroken, match=r"1 of 2 matrices: \{'a': 1\}"):
        check_pattern(before, {"a": torch.tensor([True, False, True]), "b": torch.tensor([True])})
    with pytest.raises(PatternBroken, match=r"\{'b': 'missing'\}"):
        check_pattern(before, {"a": before["a"]})


def test_check_sparsity_wants_every_matrix():
    pattern = {"a": torch.tensor([True, True, False, False]), "b": torch.tensor([True, False, False, False])}
    check_sparsity(pattern, 0.25)
    with pytest.raises(PatternBroken, match=r"\{'b': 1\}"):
        check_sparsity(pattern, 0.5)
    assert sparsity(pattern) == pytest.approx(3 / 8)
