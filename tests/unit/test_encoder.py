"""Sentence encoders: pooling by its definition, the files of sentence-transformers, loading and saving."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel

from pruneonce.errors import ModelError
from pruneonce.models import checkpoint
from pruneonce.tasks import encoder
from pruneonce.tasks.embedding import Embedding
from pruneonce.tasks.encoder import Pooling, Stated
from tests.conftest import TINY, random_masked_lm

MODULES = ["Transformer", "Pooling", "Normalize"]


def folder(path, modules=MODULES, **pooling):
    """A model's folder that says of itself how it pools."""
    (path / "1_Pooling").mkdir()
    entries = [
        {"type": f"sentence_transformers.models.{name}", "path": f"{i}_{name}" if i else ""}
        for i, name in enumerate(modules)
    ]
    (path / "modules.json").write_text(json.dumps(entries))
    (path / "1_Pooling/config.json").write_text(json.dumps({f"pooling_mode_{k}": v for k, v in pooling.items()}))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 200}))
    return path


@pytest.mark.parametrize("normalize", [True, False])
def test_padding_is_no_part_of_a_vector(normalize):
    states, mask = torch.randn(2, 5, 4), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    wanted = {"mean": lambda s: s.mean(0), "cls": lambda s: s[0], "max": lambda s: s.amax(0)}
    assert set(wanted) == set(encoder.KEYS)
    for mode, of in wanted.items():
        got = Pooling(mode, normalize)(states, mask)
        rows = torch.stack([of(states[0]), of(states[1, :3])])
        assert torch.allclose(got, torch.nn.functional.normalize(rows) if normalize else rows, atol=1e-6)


def test_a_folder_says_how_it_pools(tmp_path):
    assert encoder.stated(tmp_path) is None
    folder(tmp_path, cls_token=False, mean_tokens=True)
    assert encoder.stated(tmp_path) == Stated(Pooling("mean", True), 200)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("key", "mode"), [("mean_tokens", "mean"), ("cls_token", "cls"), ("max_tokens", "max")])
def test_every_pooling_has_its_name_in_sentence_transformers(tmp_path, key, mode, normalize):
    folder(tmp_path, MODULES[: 2 + normalize], **{key: True})
    assert encoder.stated(tmp_path) == Stated(Pooling(mode, normalize), 200)


@pytest.mark.parametrize("length", [2, "200"])
def test_a_length_that_is_none_is_one_error(tmp_path, length):
    folder(tmp_path, mean_tokens=True)
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    with pytest.raises(ModelError, match=f"found max_seq_length {length}"):
        encoder.stated(tmp_path)


def test_the_vectors_to_be_learned_are_those_that_the_folder_asks_for(tmp_path, tokenizer):
    """Whatever the task's settings say: `cls`, no length 1, and texts of ten tokens at most."""
    source = tmp_path / "model"
    shutil.copytree(TINY, source)
    checkpoint.save(random_masked_lm(), tokenizer, source)
    folder(source, MODULES[:2], cls_token=True)
    (source / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 10}))
    asked = Embedding("spearman", "mean", True, 30)
    rows = {"train": [Embedding.example("apple " * 20)]}
    (tmp_path / "splits").mkdir()
    kind, labelled = asked.taught(rows, source, tokenizer, tmp_path / "splits", device=torch.device("cpu"))
    assert (kind.pooling, kind.normalize, kind.max_tokens) == ("cls", False, 10)
    body = AutoModel.from_pretrained(source).eval()
    with torch.no_grad():
        states = body(**tokenizer("apple " * 20, truncation=True, max_length=10, return_tensors="pt")).last_hidden_state
    np.testing.assert_allclose(labelled["train"][0].label[0], states[0, 0].numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("modules", "pooling"),
    [
        (["Transformer", "Pooling", "Dense", "Normalize"], {"mean_tokens": True}),
        (["Transformer"], {"mean_tokens": True}),
        (MODULES, {"mean_tokens": True, "cls_token": True}),  # both, side by side
        (MODULES, {"weightedmean_tokens": True}),
        (MODULES, {}),
    ],
)
def test_another_encoder_is_one_error(tmp_path, modules, pooling):
    folder(tmp_path, modules, **pooling)
    with pytest.raises(ModelError, match="expected a sentence encoder with the mean, the first token or the largest values"):
        encoder.stated(tmp_path)


PROMPTS = {"prompts": {"query": "query: ", "none": ""}, "default_prompt_name": "query"}


@pytest.mark.parametrize(
    ("file", "said", "found"),
    [
        ("sentence_bert_config.json", {"do_lower_case": True}, "found do_lower_case in sentence_bert_config.json"),
        ("config_sentence_transformers.json", PROMPTS, "found the prompt 'query: ' before every text"),
        ("sentence_bert_config.json", {"max_seq_length": 200, "do_lower_case": False}, None),
        ("config_sentence_transformers.json", {"prompts": {}, "default_prompt_name": None}, None),
        ("config_sentence_transformers.json", PROMPTS | {"default_prompt_name": None}, None),
        ("config_sentence_transformers.json", PROMPTS | {"default_prompt_name": "none"}, None),
        ("config_sentence_transformers.json", {"__version__": {"transformers": "4"}}, None),
    ],
)
def test_what_changes_a_text_before_the_model_is_refused(tmp_path, file, said, found):
    """Without it the vectors are not those of the model's authors."""
    folder(tmp_path, mean_tokens=True)
    (tmp_path / file).write_text(json.dumps(said))
    if found is None:
        assert encoder.stated(tmp_path) == Stated(Pooling("mean", True), 200)
    else:
        with pytest.raises(ModelError, match=re.escape(found)):
            encoder.stated(tmp_path)


@pytest.mark.parametrize("damage", ["modules.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("content", ["", "[", "7", "[[]]", '[{"type": 1}]', "[" * 100_000, "null"])
def test_damaged_files_are_one_error(tmp_path, damage, content):
    folder(tmp_path, mean_tokens=True)
    (tmp_path / damage).write_text(content)
    with pytest.raises(ModelError, match=r"expected a sentence encoder .*, found "):
        encoder.stated(tmp_path)


def test_an_encoder_is_its_body_and_its_pooling_and_is_saved_as_the_body(tmp_path):
    torch.manual_seed(1)
    body = checkpoint.random_masked_lm(TINY / "model", attention="eager")
    body.save_pretrained(tmp_path / "lm")
    kind = encoder.with_pooling(Pooling("mean", True))
    assert kind is encoder.with_pooling(Pooling("mean", True))
    model = checkpoint.load_task_model(kind, tmp_path / "lm", attention="eager", dropout=0.0).eval()
    ids, mask = torch.tensor([[5, 6, 7, 0]]), torch.tensor([[1, 1, 1, 0]])
    plain = AutoModel.from_pretrained(tmp_path / "lm", attn_implementation="eager").eval()
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        states = plain(input_ids=ids, attention_mask=mask).last_hidden_state
        additive = model(input_ids=ids, attention_mask=(1.0 - mask[:, None, None].float()) * torch.finfo(torch.float32).min)
    assert torch.allclose(out["embedding"], Pooling("mean", True)(states, mask), atol=1e-6)
    assert torch.allclose(out["embedding"], additive["embedding"], atol=1e-6)
    assert len(out.hidden_states) == plain.config.num_hidden_layers + 1
    model.save_pretrained(tmp_path / "saved")
    again = AutoModel.from_pretrained(tmp_path / "saved", attn_implementation="eager").eval()
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids, attention_mask=mask).last_hidden_state, states)
