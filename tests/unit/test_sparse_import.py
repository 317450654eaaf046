"""A sparse checkpoint of others: its zeros are found, its weights are kept bit for bit, a dense one is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification

from pruneonce import sparse_import
from pruneonce.errors import ModelError
from pruneonce.models import checkpoint
from pruneonce.sparsity import masks
from pruneonce.sparsity.patterns import PATTERNS
from tests.conftest import TINY


@pytest.fixture
def dense(tmp_path):
    """The folder of a dense masked LM, with its tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(TINY / "model"))
    checkpoint.save(model, checkpoint.load_tokenizer(TINY / "model"), tmp_path / "dense")
    return tmp_path / "dense"


def pruned(dense, folder, *, sparsity=0.75, pattern="unstructured", architecture=AutoModelForMaskedLM):
    """A folder as somebody published it: zeros in the weights, and no word about them."""
    model = architecture.from_pretrained(dense)
    for name, linear in masks.prunable(model, r"^encoder\.").items():
        if "attention.self.key" not in name:
            linear.weight.data *= PATTERNS[pattern].mask(linear.weight.detach().abs(), sparsity)
    model.save_pretrained(folder)
    for file in dense.glob("*token*"):
        shutil.copy(file, folder)
    return folder


def test_the_zeros_are_named(dense, tmp_path):
    found = sparse_import.inspect(pruned(dense, tmp_path / "s"))
    assert len(found.zeros) == 10
    assert set(found.dense) >= {"encoder.layer.0.attention.self.key", "encoder.layer.1.attention.self.key"}
    assert found.sparsity == pytest.approx(0.75, abs=1e-3)
    *_, last = found.lines()
    assert (
        last == "10 linears are pruned: 75.00% of their weights are zero (75.0% to 75.0% of a linear), pattern unstructured"
    )
    assert "encoder.layer.0.attention.self.key  not pruned" in found.lines()


@pytest.mark.parametrize(("pattern", "sparsity"), [("1x4", 0.75), ("4x1", 0.5), ("2:4", 0.5), ("4:8", 0.5)])
def test_the_pattern_is_found(dense, tmp_path, pattern, sparsity):
    assert sparse_import.inspect(pruned(dense, tmp_path / "s", pattern=pattern, sparsity=sparsity)).pattern == pattern


@pytest.mark.parametrize("architecture", [AutoModelForMaskedLM, AutoModelForSequenceClassification])
def test_the_body_is_copied_bit_for_bit_and_finetune_can_lock_it(dense, tmp_path, architecture):
    source = pruned(dense, tmp_path / "s", architecture=architecture)
    found = sparse_import.inspect(source)
    for out in ("a", "b"):
        sparse_import.write(source, dense, found, tmp_path / out)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "a/model.safetensors")
    assert set(after) == {key for key in before if key.startswith("bert.")}
    assert all(torch.equal(after[key], before[key]) for key in after)

    config = AutoConfig.from_pretrained(tmp_path / "a", num_labels=3)
    teacher = AutoModelForSequenceClassification.from_config(config)
    student = checkpoint.load_sparse_task_model(tmp_path / "a", teacher, attention="eager", dropout=0.0)
    masks.mask_linears(student, checkpoint.load_pruned(tmp_path / "a", student))
    assert masks.sparsity(masks.lock(student)) == pytest.approx(found.sparsity)


def test_weights_in_half_precision_stay_so(dense, tmp_path):
    source = pruned(dense, tmp_path / "s")
    weights = {key: value.bfloat16() for key, value in load_file(source / "model.safetensors").items()}
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    sparse_import.write(source, dense, sparse_import.inspect(source), tmp_path / "a")
    assert {value.dtype for value in load_file(tmp_path / "a/model.safetensors").values()} == {torch.bfloat16}


def test_a_dense_model_is_refused(dense):
    with pytest.raises(
        ModelError, match=r"expected a sparse checkpoint in .*, found at most 0\.\d%, in .*This model is dense"
    ):
        sparse_import.inspect(dense)


def test_weights_in_pickles_are_refused(dense):
    (dense / "model.safetensors").rename(dense / "pytorch_model.bin")
    with pytest.raises(
        ModelError, match=r"expected weights in .*model\.safetensors, found config\.json, pytorch_model\.bin"
    ):
        sparse_import.inspect(dense)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 3}, "found encoder.layer.2"),
        ({"intermediate_size": 128}, "found encoder.layer.0.intermediate"),
    ],
)
def test_a_teacher_of_other_sizes_is_refused(dense, tmp_path, change, message):
    shutil.copytree(dense, tmp_path / "other")
    config = json.loads((dense / "config.json").read_text())
    (tmp_path / "other/config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=rf"{message}.* Set `common.model` to the dense model"):
        sparse_import.check_same(dense, tmp_path / "other")
    sparse_import.check_same(dense, dense)


def test_a_teacher_of_another_vocabulary_is_refused(dense, tmp_path):
    shutil.copytree(dense, tmp_path / "other")
    tokenizer = json.loads((dense / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    one, other = list(words)[-2:]
    words[one], words[other] = words[other], words[one]
    (tmp_path / "other/tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"expected one vocabulary, found 162 tokens in .* or other ids"):
        sparse_import.check_same(tmp_path / "other", dense)
