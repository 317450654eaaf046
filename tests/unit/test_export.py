"""The ONNX file of a tiny BERT: dynamic axes, the oldest format, plain operators without detours."""

import shutil
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from transformers import BertConfig

from pruneonce.deployment import embeddings, export, runtime
from pruneonce.models import configuration
from tests.conftest import token_batch

LAYER = "encoder.layer.0.attention.self.query"


@pytest.mark.parametrize("shape", [(1, 2), (1, 5), (3, 17), (2, 64)])
def test_batch_and_length_are_dynamic(exported, shape):
    running = runtime.session(exported.path, threads=1)
    found = runtime.logits(running, token_batch(1, *shape))
    assert found.shape == (shape[0], 3)
    assert np.isfinite(found).all()


def test_padding_changes_nothing(exported):
    running, text = runtime.session(exported.path, threads=1), token_batch(2, 1, 9)
    padded = {k: torch.nn.functional.pad(text[k], (0, 6)) for k in ("input_ids", "attention_mask")}
    np.testing.assert_allclose(runtime.logits(running, padded), runtime.logits(running, text), atol=1e-5)
    seen = padded | {"attention_mask": torch.ones_like(padded["attention_mask"])}
    assert np.abs(runtime.logits(running, seen) - runtime.logits(running, text)).max() > 1e-3


def test_one_file_with_two_inputs(exported):
    proto = onnx.load(exported.path)
    assert [i.name for i in proto.graph.input] == ["input_ids", "attention_mask"]
    assert [o.name for o in proto.graph.output] == ["logits"]
    assert len(list(exported.path.parent.iterdir())) == 1
    assert {t.data_location for t in proto.graph.initializer} == {onnx.TensorProto.DEFAULT}


def test_the_file_is_of_the_lowest_version_that_its_operators_allow(exported, tmp_path):
    """9 came with opset 20 in ONNX 1.15: ONNX Runtime 1.17 reads it, and refuses a 10, whatever stands in the file."""
    shutil.copy(exported.path, tmp_path / "model.onnx")
    embeddings.quantize(tmp_path / "model.onnx")
    for path in (exported.path, tmp_path / "model.onnx"):
        proto = onnx.load(path)
        assert (proto.ir_version, [(o.domain, o.version) for o in proto.opset_import]) == (9, [("", 20)])
    assert export.oldest_ir_version({"": 20}) == 9
    assert export.oldest_ir_version({"": 13}) == 7
    assert export.oldest_ir_version({"": 13, "ai.onnx.ml": 4}) == 9


class Refuses(torch.nn.Module):
    """A model that takes a mask of two axes only, and whose positions begin behind that of padding."""

    def __init__(self):
        super().__init__()
        self.config = BertConfig(vocab_size=10, max_position_embeddings=12)
        self.position_embeddings = torch.nn.Embedding(12, 2, padding_idx=1)

    def forward(self, input_ids, attention_mask):
        if attention_mask.dim() != 2:
            raise ValueError("wrong shape for attention_mask")
        return (self.position_embeddings(input_ids * attention_mask),)


def test_a_model_that_refuses_a_ready_mask_gets_the_one_it_knows(classifier):
    assert not export.takes_additive_mask(Refuses())
    assert configuration.longest(Refuses()) == 10
    assert export.takes_additive_mask(classifier)
    assert configuration.longest(classifier) == 64


def test_the_file_is_plain_onnx_without_detours(exported):
    onnx.checker.check_model(exported.path, full_check=True)
    proto = onnx.load(exported.path)
    assert {o.domain for o in proto.opset_import} == {""}
    count = Counter(node.op_type for node in proto.graph.node)
    layers, constants = 2, {t.name for t in proto.graph.initializer}
    assert count["Reshape"] == count["Transpose"] == 4 * layers
    assert all(node.input[1] in constants for node in proto.graph.node if node.op_type == "Reshape")
    assert count["LayerNormalization"] == 2 * layers + 1
    assert count["Sum"] == count["LayerNormalization"] + layers  # what normalisations and Gelus read
    assert count["Softmax"] == count["Gelu"] == layers
    assert count["Gather"] <= 4  # words, positions, the first token for the pooler
    assert not {"Expand", "Where", "IsNaN", "GatherElements", "ConstantOfShape", "Concat"} & set(count)
    # query, key and value read one tensor through one QuantizeLinear
    quantizers = 4 * layers if exported.weights[LAYER].dtype == np.int8 else 0
    assert count["QuantizeLinear"] == quantizers


def test_query_key_and_value_have_one_grid(int8_onnx):
    layer = int8_onnx.model.bert.encoder.layer[0].attention.self
    assert layer.query.scale == layer.key.scale == layer.value.scale
    assert layer.query.zero_point == layer.key.zero_point == layer.value.zero_point
