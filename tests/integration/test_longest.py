"""A text of more tokens than a model has positions for, asked of what ships: one error that says how many it has."""

import re

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

import pruneonce
from pruneonce.deployment import export
from pruneonce.errors import ModelError
from tests.integration.test_architectures import ARCHITECTURES

RELATIVE = {"deberta-v2"}  # positions are computed, not looked up: a text of any length is answered


@pytest.mark.parametrize("name", ["bert", "roberta", "mpnet", *RELATIVE])  # every way to number positions
def test_a_text_is_answered_up_to_the_last_position(name, tmp_path):
    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **architecture.config, num_labels=3)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    export.to_onnx(model, tmp_path / "model.onnx")
    session = pruneonce.load(tmp_path / "model.onnx", threads=1)

    def answer(tokens: int) -> np.ndarray:
        ids = np.full((2, tokens), 7)
        return session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]

    assert np.isfinite(answer(architecture.longest)).all()
    if name in RELATIVE:
        assert np.isfinite(answer(architecture.longest + 1)).all()
        return
    for tokens in (architecture.longest + 1, 1000):
        says = f"expected texts of at most {architecture.longest} tokens, for which the model has positions, found {tokens}."
        with pytest.raises(ModelError, match=re.escape(says)):
            answer(tokens)
