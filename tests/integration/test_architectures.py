"""One code path for every architecture: tiny models of random weights through every stage that has one in its hands.

DeBERTa-v3 is the class and the `model_type` of DeBERTa-v2 with another configuration; it is v3's that is built here.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import pruneonce
from pipeline.kept import Kept
from pruneonce import quantization
from pruneonce.batch import IGNORED, inputs
from pruneonce.deployment import audit, execution, export, parity, runtime, weight_names
from pruneonce.errors import ModelError
from pruneonce.language import corpus, masked_lm, preparation
from pruneonce.models import checkpoint, configuration
from pruneonce.sparsity import masks, matrices
from pruneonce.tasks import splits
from pruneonce.tasks.batches import evaluation_batches
from pruneonce.tasks.classification import Classification
from tests.conftest import cpu_engine, token_batch
from tests.integration import tiny
from tests.integration.tiny import TASK

SIZES = {
    "vocab_size": 162,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.05,
    "pad_token_id": 0,
}
BERT = [f"attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense")]
BERT += ["intermediate.dense", "output.dense"]


@dataclass(frozen=True)
class Architecture:
    """A tiny configuration; what is prunable in a layer of it; the names of its layers; how many tokens it takes."""

    config: dict[str, Any]
    parts: list[str]
    layers: tuple[str, ...] = ("encoder.layer.0", "encoder.layer.1")
    longest: int = 64


ARCHITECTURES = {
    "bert": Architecture(SIZES, BERT),
    "distilbert": Architecture(
        {
            **{"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2},
            **{k: SIZES[k] for k in ("vocab_size", "max_position_embeddings", "initializer_range", "pad_token_id")},
        },
        [f"attention.{q}_lin" for q in ("q", "k", "v", "out")] + ["ffn.lin1", "ffn.lin2"],
        ("transformer.layer.0", "transformer.layer.1"),
    ),
    "roberta": Architecture(SIZES | {"type_vocab_size": 1}, BERT, longest=63),  # positions begin behind that of padding
    "electra": Architecture(SIZES | {"embedding_size": 16}, BERT),
    "deberta-v2": Architecture(
        SIZES
        | {"relative_attention": True, "position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True}
        | {"pos_att_type": "p2c|c2p", "position_biased_input": False, "type_vocab_size": 0},
        [f"attention.self.{q}_proj" for q in ("query", "key", "value")] + BERT[3:],
    ),
    "albert": Architecture(
        SIZES | {"embedding_size": 16},
        [f"attention.{q}" for q in ("query", "key", "value", "dense")] + ["ffn", "ffn_output"],
        ("encoder.albert_layer_groups.0.albert_layers.0",),
    ),
    "mpnet": Architecture(SIZES, [f"attention.attn.{q}" for q in "qkvo"] + BERT[4:], longest=62),
    "modernbert": Architecture(
        SIZES
        | {"global_attn_every_n_layers": 2, "local_attention": 8}
        | dict.fromkeys(("cls_token_id", "bos_token_id", "sep_token_id", "eos_token_id"), 2),
        ["attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"],
        ("layers.0", "layers.1"),
    ),
}
FEW = {"epochs": 0.1, "batch_size": 8}
DISTILLATION = {"temperature": 2.0, "hard_weight": 0.1, "soft_weight": 0.5, "hidden_weight": 1.0, "attention_weight": 0.0}
SHORT = {
    "sparsify": {"steps": 3, "warmup_steps": 1, "prune_end_steps": 1, "freeze_masks_steps": 1, "prune_every_steps": 1}
    | {"soft_positions": "all", "calibration_batches": 1, "held_out_batches": 1}
    | {"distillation": DISTILLATION},
    "teach_task": FEW,
    "finetune": FEW,
    "quantize": FEW,
    "export": {"embeddings": "fp32"},
    "evaluate": {"latency_runs": 10, "warmup_runs": 0},
}
TARGET = 0.85
PLAIN_ATTENTION = ("deberta-v2", "mpnet", "modernbert")  # of another form than BERT's: positions in its scores
RELATIVE = ("deberta-v2", "modernbert")  # positions are computed, not looked up: a text of any length is answered
TRAINED = [name for name in ARCHITECTURES if name != "bert"]  # the tiny profile is one, and goes through all in test_stages


@pytest.fixture(params=ARCHITECTURES)
def name(request) -> str:
    return request.param


@pytest.fixture
def built(name) -> Callable[..., Any]:
    """auto class -> a model of random weights in evaluation mode, of two layers or of one."""

    def build(auto, layers=2):
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, **ARCHITECTURES[name].config)
        config.num_hidden_layers = layers
        return auto.from_config(config, attn_implementation="eager").eval()

    return build


def expected(name: str, layers: int = 2) -> list[str]:
    return [f"{layer}.{part}" for layer in ARCHITECTURES[name].layers[:layers] for part in ARCHITECTURES[name].parts]


def test_what_is_prunable_is_found_from_the_structure(name, built):
    model = built(AutoModelForMaskedLM)
    assert list(masks.prunable(model, None)) == expected(name)
    rows = matrices.matrices(model, None)
    assert sum(r.count for r in rows if r.prunable == "yes") == len(expected(name))
    assert {r.prunable for r in rows} >= {"yes", "no: embeddings", "no: head", "no: the embeddings again"}
    assert sum(r.weights for r in rows) == sum(p.numel() for p in model.parameters() if p.ndim > 1)


def test_the_head_reads_the_positions_that_are_asked_for(name, built):
    model, batch = built(AutoModelForMaskedLM), token_batch(0, 4, 20)
    positions = torch.rand(4, 20, generator=torch.Generator().manual_seed(0)) < 0.3
    with torch.no_grad():
        head, out = masked_lm.head_at(model, batch, positions, output_hidden_states=True)
        whole = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[positions]
    torch.testing.assert_close(torch.nn.functional.linear(*head), whole, atol=1e-5, rtol=1e-5)
    assert [s.shape for s in out.hidden_states[1:]] == [(4, 20, 32)] * 2


def test_a_mask_is_made_ready_only_where_that_is_the_same_function(name, built):
    assert export.takes_additive_mask(built(AutoModelForSequenceClassification)) == (
        name not in ("deberta-v2", "modernbert")
    )


def batches_of_many_lengths() -> list[dict[str, torch.Tensor]]:
    return [token_batch(seed, *shape) for seed, shape in enumerate([(4, 20), (1, 3), (5, 33)])]


@pytest.mark.parametrize(
    ("auto", "outputs"),
    [(AutoModelForQuestionAnswering, ("start_logits", "end_logits")), (AutoModelForTokenClassification, ("logits",))],
    ids=["answers", "tags"],
)
def test_answers_and_tags_ship_in_integers(name, built, tmp_path, auto, outputs):
    """Heads on every token, above one layer; the stages below classify whole texts, by layers above another."""
    model = built(auto, layers=1)
    masks.mask_linears(model, None)
    masks.prune(model, TARGET)
    masks.bake(model)
    masks.mask_linears(model, None, quantization.FakeQuantLinear)
    masks.lock(model)
    quantization.calibrate(model, [token_batch(seed, 8, 12) for seed in range(2)], engine=cpu_engine())
    weights = {layer: m.weight.numpy().T for layer, m in quantization.to_int8(model).items()}
    assert list(weights) == expected(name, layers=1)
    path = tmp_path / "int8.onnx"
    export.to_onnx(model, path, outputs=outputs)
    weight_names.name_weights(path, weights)
    texts = parity.Texts(batches_of_many_lengths(), outputs, lambda logits, _: logits.argmax(-1).ravel())
    reference = parity.reference(model, texts)
    assert reference.logits[0].shape == ((4, 2, 20) if len(outputs) == 2 else (4, 20, 2))
    found = parity.parity(reference, path)
    parity.check_parity(found, relative_error=0.02, same_decision=0.95)
    assert audit.Audit(path).kernels(weights) == dict.fromkeys(weights, "MatMulIntegerToFloat")
    for layer, weight in weights.items():
        assert (weight == 0).mean() >= TARGET - 0.01, layer

    check_sparse_execution(name, path, layers=1)


def check_sparse_execution(name: str, path: Path, *, layers: int) -> None:
    """An int8 file answers on the sparse kernels as on ONNX Runtime's own, by all of them that its architecture has."""
    sessions = [execution.session(path, threads=1, execution=execution_name) for execution_name in ("stock", "sparse")]
    for batch in batches_of_many_lengths():
        stock, sparse = (runtime.logits(session, batch) for session in sessions)
        # A number in the middle of two grid points goes to the other one: that moves a logit by a small part of it.
        np.testing.assert_allclose(sparse, stock, rtol=0, atol=0.02 * np.abs(stock).max())
    nodes = Counter(
        node.op_type
        for node in onnx.load_model_from_string(execution.accelerated(path, execution="sparse", threads=1)).graph.node
    )
    tables = 2 * layers if name == "deberta-v2" else 0  # of positions
    products = layers * len(ARCHITECTURES[name].parts) + tables  # also of one group of layers
    assert nodes["SparseLinear"] == products - 2 * nodes["Attention"], "queries, keys and values are one product"
    assert nodes["Attention"] == (0 if name in PLAIN_ATTENTION else layers)
    assert nodes["AddNormalize"] == (0 if name == "modernbert" else 2 * layers), "it normalizes before a linear, not after"
    assert nodes["MatMulIntegerToFloat"] == 0


def test_tokens_of_another_tokenizer(byte_level, tmp_path):
    lines = (tiny.ROOT / "tests/tiny/text/corpus.txt").read_text().splitlines()
    sizes = {"block_tokens": 32, "held_out_ratio": 0.1, "max_tokens": None, "exclude": [], "seed": 1}
    preparation.write_corpus(lines, byte_level, tmp_path, keep=Kept(tmp_path), **sizes)
    blocks = corpus.read_blocks(tmp_path / "train.arrow")
    tokens = blocks["tokens"][:]
    assert (tokens[:, 0] == 0).all()
    assert (tokens[:, -1] == 2).all()
    assert byte_level.decode(tokens[0][1:-1]).split("</s>")[0] == lines[0]
    batch = corpus.MaskedBlocks(blocks, byte_level, batch_size=8, probability=0.5, seed=1)(0)
    chosen = batch["labels"] != IGNORED
    assert (batch["labels"][chosen] > 4).all()
    assert 0.6 < (batch["input_ids"][chosen] == 4).float().mean() < 0.95

    kind, rows = Classification("accuracy", ["a"]), [Classification.example(line, "a") for line in lines[:8]]
    splits.write_split(tmp_path / "split.arrow", rows, kind, byte_level, max_tokens=12)
    (padded,) = evaluation_batches(splits.read_split(tmp_path / "split.arrow"), kind, byte_level)
    assert (padded["input_ids"][:, 0] == 0).all()
    assert ((padded["input_ids"] == 1) == (padded["attention_mask"] == 0)).all()
    fields = ARCHITECTURES["roberta"].config | {"vocab_size": 300, "pad_token_id": 1}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("roberta", **fields)).eval()
    with torch.no_grad():
        together = model(**inputs(padded)).logits
        alone = [model(input_ids=i[m.bool()][None]).logits[0] for i, m in zip(*inputs(padded).values(), strict=True)]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """The tokens and splits that all architectures share."""
    folder = tmp_path_factory.mktemp("prepared")
    stages(folder, "fetch_local", "prepare_task", "list_tasks", "prepare_corpus")
    return folder


def stages(folder: Path, *names: str) -> dict[str, Any]:
    """Run these stages in `folder`, a few steps each; their metrics by name."""
    document = tiny.document()
    for section, values in SHORT.items():
        document[section].update(values)
    return {c.stage: tiny.run(c, folder, document) for c in tiny.commands(document) if c.stage in names}


@dataclass(frozen=True)
class Done:
    """What the stages made of an architecture, and their metrics by stage."""

    name: str
    data: Path
    metrics: dict[str, Any]


@pytest.fixture(scope="module", params=TRAINED)
def done(request, prepared, tmp_path_factory) -> Done:
    """A random language model, pruned, fine-tuned, quantized, exported and evaluated by the stages."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    shutil.copytree(prepared / "data", folder / "data")
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(name, **ARCHITECTURES[name].config))
    checkpoint.save(model, checkpoint.load_tokenizer(tiny.ROOT / "tests/tiny/model"), folder / "data/prepare_teacher/model")
    return Done(
        name, folder / "data", stages(folder, "sparsify", "teach_task", "finetune", "quantize", "export", "evaluate")
    )


def stored(folder: Path, names: list[str]) -> dict[str, torch.Tensor]:
    """The matrices of these names as they lie in a checkpoint: read without the library."""
    tensors = load_file(folder / "model.safetensors")
    found = {name: [key for key in tensors if key.endswith(f".{name}.weight")] for name in names}
    assert {len(keys) for keys in found.values()} == {1}
    return {name: tensors[key] for name, (key,) in found.items()}


def test_pruned_once_exactly_and_kept(done):
    sparse = {layer: weight == 0 for layer, weight in stored(done.data / "sparsify/model", expected(done.name)).items()}
    for layer, zero in sparse.items():
        assert int(zero.sum()) == masks.pruned_count(TARGET, zero.numel()), layer
    dense = stored(done.data / f"teach_task/{TASK}", expected(done.name))
    for stage in ("finetune", "quantize"):
        folder = done.data / f"{stage}/{TASK}"
        assert json.loads((folder / "config.json").read_text())["pruned"] == expected(done.name)
        for layer, weight in stored(folder, expected(done.name)).items():
            assert (weight[sparse[layer]] == 0).all(), (stage, layer)
            assert not torch.equal(weight, dense[layer])


def test_the_files_hold_the_pattern_each_matrix_once(done):
    """Read by onnx alone: in every file exactly the zeros, and no two tensors alike."""
    sparse = {layer: weight.T == 0 for layer, weight in stored(done.data / "sparsify/model", expected(done.name)).items()}
    readers = len(ARCHITECTURES[done.name].layers)  # of a matrix that layers share: as many as the model has layers
    for variant in ("dense", "sparse", "int8"):
        graph = onnx.load(done.data / f"export/{TASK}/{variant}.onnx").graph
        tables = {t.name: t for t in graph.initializer if len(t.dims) == 2}
        assert len({t.SerializeToString() for t in tables.values()}) == len(tables)
        for layer, zero in sparse.items():
            matrix = torch.tensor(onnx.numpy_helper.to_array(tables[f"{layer}.weight"]))
            assert (matrix[zero] == 0).all() == (variant != "dense"), (variant, layer)
        if variant == "int8":
            assert sorted(t for t in tables if tables[t].data_type == onnx.TensorProto.INT8) == sorted(
                f"{layer}.weight" for layer in expected(done.name)
            )
        elif readers == 1:
            read = [name for node in graph.node for name in node.input]
            assert {read.count(f"{layer}.weight") for layer in expected(done.name)} == {SIZES["num_hidden_layers"]}


def test_what_the_stages_say_of_the_files(done):
    names = expected(done.name)
    for variant in ("dense", "sparse", "int8"):
        assert set(done.metrics["evaluate"][variant]["sparsity_of"]) == set(names)
    assert done.metrics["evaluate"]["dense"]["sparsity"] < 0.01
    for variant in ("sparse", "int8"):
        assert all(zeros >= TARGET - 0.01 for zeros in done.metrics["evaluate"][variant]["sparsity_of"].values())
    assert done.metrics["export"]["int8"]["kernels"] == {"MatMulIntegerToFloat": len(names)}


def test_the_int8_file_at_every_length(done):
    """The stage asks texts of the task; here, padding of other numbers, three tokens, and as many as the model takes."""
    folder, path = done.data / f"quantize/{TASK}", done.data / f"export/{TASK}/int8.onnx"
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    quantization.load(model, folder)
    assert set(quantization.quantized_linears(model)) == set(expected(done.name))
    quantization.to_int8(model)

    assert configuration.longest(model) == ARCHITECTURES[done.name].longest
    sizes = [(4, 20), (1, 3), (5, 33), (2, ARCHITECTURES[done.name].longest)]
    batches = [token_batch(seed, rows, length) for seed, (rows, length) in enumerate(sizes)]
    found = parity.parity(parity.reference(model, parity.Texts(batches)), path)
    parity.check_parity(found, relative_error=0.02, same_decision=1.0)


def test_the_int8_file_on_the_sparse_kernels(done):
    """Two layers: of ModernBERT's one is local, and ALBERT's share their weights."""
    check_sparse_execution(done.name, done.data / f"export/{TASK}/int8.onnx", layers=2)


def test_the_int8_file_of_a_bert_on_the_sparse_kernels(first):
    check_sparse_execution("bert", first[f"export/{TASK}/int8.onnx"], layers=2)


def check_longest(name: str, path: Path) -> None:
    """A text of more tokens than a model has positions for is one error that says how many it has."""
    longest, session = ARCHITECTURES[name].longest, pruneonce.load(path, threads=1)

    def answer(tokens: int) -> np.ndarray:
        ids = np.full((2, tokens), 7)
        return session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]

    assert np.isfinite(answer(longest)).all()
    if name in RELATIVE:
        assert np.isfinite(answer(longest + 1)).all()
        return
    for tokens in (longest + 1, 1000):
        says = f"expected texts of at most {longest} tokens, for which the model has positions, found {tokens}."
        with pytest.raises(ModelError, match=re.escape(says)):
            answer(tokens)


def test_a_text_is_answered_up_to_the_last_position(done):
    check_longest(done.name, done.data / f"export/{TASK}/dense.onnx")


def test_a_text_is_answered_up_to_the_last_position_of_a_bert(dense_onnx):
    check_longest("bert", dense_onnx.path)
