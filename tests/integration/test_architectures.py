"""One code path for every architecture: tiny models of random weights through every stage that has one in its hands.

DeBERTa-v3 is the class and the `model_type` of DeBERTa-v2 with another configuration; it is v3's that is built here.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from pruneonce import checkpoint, corpus, exporting, masked_lm, pruning, quantization, tasks, training
from pruneonce.classification import Classification
from tests.conftest import token_batch
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
SHORT = {
    "sparsify": {"steps": 3, "warmup_steps": 1, "prune_end_steps": 1, "freeze_masks_steps": 1, "prune_every_steps": 1}
    | {"soft_weight": 0.5, "soft_positions": "all", "calibration_batches": 1, "held_out_batches": 1},
    "teach_task": FEW,
    "finetune": FEW,
    "quantize": FEW,
    "export": {"embeddings": "fp32"},
    "evaluate": {"latency_runs": 10, "warmup_runs": 0},
}
TARGET = 0.85
TRAINED = [name for name in ARCHITECTURES if name != "bert"]  # the tiny profile is one, and goes through all in test_stages


@pytest.fixture(params=ARCHITECTURES)
def name(request) -> str:
    return request.param


@pytest.fixture
def built(name) -> Callable[[Any], Any]:
    """auto class -> a model of random weights in evaluation mode."""

    def build(auto):
        torch.manual_seed(0)
        return auto.from_config(AutoConfig.for_model(name, **ARCHITECTURES[name].config), attn_implementation="eager").eval()

    return build


def expected(name: str) -> list[str]:
    return [f"{layer}.{part}" for layer in ARCHITECTURES[name].layers for part in ARCHITECTURES[name].parts]


def test_what_is_prunable_is_found_from_the_structure(name, built):
    model = built(AutoModelForMaskedLM)
    assert list(pruning.prunable(model, None)) == expected(name)
    rows = pruning.matrices(model, None)
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
    assert exporting.takes_added_mask(built(AutoModelForSequenceClassification)) == (
        name not in ("deberta-v2", "modernbert")
    )


@pytest.fixture
def byte_level(tmp_path):
    """RoBERTa's kind of tokenizer, of the tiny corpus: special tokens of other names and ids than BERT's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    backend.train([str(tiny.ROOT / "tests/tiny/text/corpus.txt")], trainer)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    roles = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(tmp_path)
    return checkpoint.load_tokenizer(tmp_path)


def test_tokens_of_another_tokenizer(byte_level, tmp_path):
    lines = (tiny.ROOT / "tests/tiny/text/corpus.txt").read_text().splitlines()
    sizes = {"block_tokens": 32, "held_out_ratio": 0.1, "max_tokens": None, "exclude": [], "seed": 1}
    corpus.write_corpus(lambda: lines, byte_level, tmp_path, **sizes)
    blocks = corpus.read_blocks(tmp_path / "train.arrow")
    tokens = blocks["tokens"][:]
    assert (tokens[:, 0] == 0).all()
    assert (tokens[:, -1] == 2).all()
    assert byte_level.decode(tokens[0][1:-1]).split("</s>")[0] == lines[0]
    batch = corpus.MaskedBlocks(blocks, byte_level, batch_size=8, probability=0.5, seed=1)(0)
    chosen = batch["labels"] != corpus.IGNORED
    assert (batch["labels"][chosen] > 4).all()
    assert 0.6 < (batch["input_ids"][chosen] == 4).float().mean() < 0.95

    kind, rows = Classification("accuracy", ["a"]), [Classification.example(line, "a") for line in lines[:8]]
    tasks.write_split(tmp_path / "split.arrow", rows, kind, byte_level, max_tokens=12)
    (padded,) = tasks.evaluation_batches(tasks.read_split(tmp_path / "split.arrow"), kind, byte_level)
    assert (padded["input_ids"][:, 0] == 0).all()
    assert ((padded["input_ids"] == 1) == (padded["attention_mask"] == 0)).all()
    fields = ARCHITECTURES["roberta"].config | {"vocab_size": 300, "pad_token_id": 1}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("roberta", **fields)).eval()
    with torch.no_grad():
        together = model(**training.inputs(padded)).logits
        alone = [
            model(input_ids=i[m.bool()][None]).logits[0] for i, m in zip(*training.inputs(padded).values(), strict=True)
        ]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """The tokens and splits that all architectures share."""
    folder = tmp_path_factory.mktemp("prepared")
    stages(folder, "fetch_local", "prepare_task", "prepare_corpus")
    return folder


def stages(folder: Path, *names: str) -> dict[str, Any]:
    """Run these stages in `folder`, a few steps each; their metrics by name."""
    document = tiny.document()
    for section, values in SHORT.items():
        document[section].update(values)
    return {c.stage: tiny.run(c, folder, document) for c in tiny.commands(document) if c.stage in names}


@pytest.fixture(scope="module", params=TRAINED)
def trained(request, prepared, tmp_path_factory) -> tuple[str, Path]:
    """(name, folder): a random language model, pruned, fine-tuned and quantized by the stages."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    shutil.copytree(prepared / "data", folder / "data")
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(name, **ARCHITECTURES[name].config))
    checkpoint.save(model, checkpoint.load_tokenizer(tiny.ROOT / "tests/tiny/model"), folder / "data/prepare_teacher/model")
    stages(folder, "sparsify", "teach_task", "finetune", "quantize")
    return name, folder / "data"


def stored(folder: Path, names: list[str]) -> dict[str, torch.Tensor]:
    """The matrices of these names as they lie in a checkpoint: read without the library."""
    tensors = load_file(folder / "model.safetensors")
    found = {name: [key for key in tensors if key.endswith(f".{name}.weight")] for name in names}
    assert {len(keys) for keys in found.values()} == {1}
    return {name: tensors[key] for name, (key,) in found.items()}


def test_pruned_once_exactly_and_kept(trained):
    name, data = trained
    sparse = {layer: weight == 0 for layer, weight in stored(data / "sparsify/model", expected(name)).items()}
    for layer, zero in sparse.items():
        assert int(zero.sum()) == pruning.pruned_count(TARGET, zero.numel()), layer
    dense = stored(data / f"teach_task/{TASK}", expected(name))
    for stage in ("finetune", "quantize"):
        folder = data / f"{stage}/{TASK}"
        assert checkpoint.load_pruned(folder) == expected(name)
        for layer, weight in stored(folder, expected(name)).items():
            assert (weight[sparse[layer]] == 0).all(), (stage, layer)
            assert not torch.equal(weight, dense[layer])


def test_the_int8_file(trained, tmp_path):
    """Parity with padding and at every length, the zeros, each matrix once, an integer kernel for all of its readers."""
    (name, data), path = trained, tmp_path / "model.onnx"
    folder = data / f"quantize/{TASK}"
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    pruning.mask_linears(model, expected(name), quantization.FakeQuantLinear)
    pruning.lock(model)
    quantization.load_ranges(model, checkpoint.load_ranges(folder))
    zeros = {layer: ~linear.mask.numpy() for layer, linear in quantization.quantized_linears(model).items()}
    weights = {layer: linear.weight.numpy().T for layer, linear in quantization.to_int8(model).items()}
    exporting.export(model, path)
    exporting.name_weights(path, weights)

    assert exporting.longest(model) == ARCHITECTURES[name].longest
    sizes = [(4, 20), (1, 3), (5, 33), (2, ARCHITECTURES[name].longest)]
    batches = [token_batch(seed, rows, length) for seed, (rows, length) in enumerate(sizes)]
    found = exporting.parity(exporting.logits(model, batches), path, batches)
    exporting.check_parity(found, max_difference=0.02, same_decision=1.0)
    exporting.check_zeros(path, zeros)
    assert min(zero.mean() for zero in zeros.values()) > TARGET - 0.01
    assert exporting.Audit(path).kernels(weights) == dict.fromkeys(expected(name), "MatMulIntegerToFloat")
    tensors = [t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert sorted(t.name for t in tensors) == sorted(f"{layer}.weight" for layer in expected(name))
    assert exporting.shares_weights(path) == (name in ("albert", "deberta-v2"))


@pytest.mark.parametrize("trained", ["albert"], indirect=True)
def test_shared_layers_through_export_and_evaluate(trained):
    """Every file holds a shared matrix once, under the name that all its readers read."""
    name, data = trained
    metrics = stages(data.parent, "export", "evaluate")
    for variant in ("dense", "sparse", "int8"):
        graph = onnx.load(data / f"export/{TASK}/{variant}.onnx").graph
        contents = [t.SerializeToString() for t in graph.initializer if len(t.dims) == 2]
        assert len(contents) == len(set(contents))
        readers = [i for node in graph.node for i in node.input]
        assert {readers.count(f"{layer}.weight") for layer in expected(name)} == ({1} if variant == "int8" else {2})
        assert set(metrics["evaluate"][variant]["sparsity_of"]) == set(expected(name))
    assert metrics["export"]["int8"]["kernels"] == {"MatMulIntegerToFloat": 6}
    assert metrics["evaluate"]["int8"]["sparsity"] >= TARGET
    assert "parity_of_exact_sums" not in metrics["export"]["int8"]
