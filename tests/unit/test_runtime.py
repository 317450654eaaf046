"""ONNX Runtime: sessions, logits, errors."""

import re

import numpy as np
import pytest
import torch

from pruneonce.deployment import export, runtime
from pruneonce.errors import ModelError
from tests.conftest import random_classifier, token_batch


@pytest.fixture
def running(dense_onnx):
    return runtime.session(dense_onnx.path, threads=1)


def test_logits_are_the_models(running, dense_onnx):
    batch = token_batch(5, 6, 14)
    with torch.no_grad():
        wanted = dense_onnx.model(batch["input_ids"], batch["attention_mask"]).logits.numpy()
    np.testing.assert_allclose(runtime.logits(running, batch), wanted, atol=1e-5)


BATCH = np.full((2, 9), 7)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"attention_mask": BATCH[:, :8]}, r"'input_ids': (2, 9), 'attention_mask': (2, 8)}: .* 8 by 9"),
        ({"input_ids": BATCH + 1000}, "idx=1007 must be within the inclusive range [-162,161]"),
        ({"input_ids": BATCH.astype(np.int32)}, "expected: (tensor(int64))"),
        ({"input_ids": BATCH[0]}, "Got: 1 Expected: 2"),
        ({"input_ids": BATCH[:, :0], "attention_mask": BATCH[:, :0]}, "'attention_mask': (2, 0)}: "),
        ({"tokens": BATCH}, "Invalid input name: tokens"),
        ({"input_ids": np.full((2, 65), 7)}, "'input_ids': (2, 65), 'attention_mask': (2, 9)"),
    ],
)
def test_inputs_that_the_model_cannot_read_are_one_error(running, given, says, capfd):
    """The number of positions is named where it is what is wrong: tests/integration/test_architectures.py."""
    feeds = {"input_ids": BATCH, "attention_mask": np.ones_like(BATCH), **given}
    says = ".*".join(map(re.escape, says.split(".*")))
    with pytest.raises(ModelError, match=f"expected inputs that the model can read, found .*{says}"):
        running.run(None, feeds)
    assert capfd.readouterr() == ("", "")
    assert running.run(None, {"input_ids": BATCH, "attention_mask": np.ones_like(BATCH)})[0].shape == (2, 3)


def test_a_text_that_is_too_long_is_told_the_positions(running, capfd):
    for rows, tokens in ((1, 65), (3, 70), (2, 5000)):
        ids = np.full((rows, tokens), 7)
        with pytest.raises(
            ModelError, match=f"at most 64 tokens, for which the model has positions, found {tokens}. Cut them"
        ):
            running.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert capfd.readouterr() == ("", "")


PAIR = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="module")
def of_pairs(tmp_path_factory):
    """A model that reads which of two texts a token belongs to."""
    path = tmp_path_factory.mktemp("pairs") / "model.onnx"
    export.to_onnx(random_classifier(), path, inputs=PAIR)
    return runtime.session(path, threads=1)


def test_a_pair_that_is_too_long_is_told_the_positions(of_pairs):
    """The types of the tokens are 0 and 1 alone: no other value is tried for them."""
    ids = np.full((1, 70), 7)
    with pytest.raises(ModelError, match="at most 64 tokens, for which the model has positions, found 70"):
        of_pairs.run(None, dict.fromkeys(PAIR, np.ones_like(ids)) | {"input_ids": ids})


@pytest.mark.parametrize(("name", "value"), [("input_ids", 1007), ("token_type_ids", 2)])
def test_an_id_that_the_model_does_not_know_is_no_question_of_length(of_pairs, name, value):
    feeds = dict.fromkeys(PAIR, np.ones_like(BATCH)) | {name: np.full_like(BATCH, value)}
    with pytest.raises(ModelError, match=f"expected inputs that the model can read, found .*idx={value}"):
        of_pairs.run(None, feeds)


def test_a_model_that_reads_none_of_the_tokens_tried_has_no_length(of_pairs, monkeypatch):
    monkeypatch.setattr(runtime, "ANY_TOKEN", 1007)
    ids = np.full((1, 70), 7)
    with pytest.raises(ModelError, match=r"expected inputs that the model can read, found .*70"):
        of_pairs.run(None, dict.fromkeys(PAIR, np.ones_like(ids)) | {"input_ids": ids})


def test_the_session_has_the_threads_it_was_given(dense_onnx):
    options = runtime.session(dense_onnx.path, threads=2).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)


def test_a_session_takes_further_options(dense_onnx):
    options = runtime.session(dense_onnx.path, threads=1, entries={"session.x64quantprecision": "1"}).get_session_options()
    assert options.get_session_config_entry("session.x64quantprecision") == "1"
