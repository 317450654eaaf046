"""A corpus of segment pairs through every stage; the model has a pooler, and it is pruned like all the rest."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper
from safetensors.torch import load_file

from pruneonce.errors import ModelError
from pruneonce.language import corpus
from tests.integration import tiny
from tests.integration.tiny import TASK

REPORT = {f"data/report/{name}" for name in ("report.md", "report.json", "report.html", f"cards/{TASK}.md")}
TIMED = {f"data/latency/{TASK}.json", *REPORT}


def document() -> dict[str, Any]:
    """The tiny profile with segment pairs and every part of the losses, in few steps."""
    changed = tiny.document()
    changed["prepare_corpus"]["next_sentence"] = True
    changed["prepare_teacher"] |= {"steps": 20, "held_out_batches": 4}
    changed["sparsify"] |= {"steps": 12, "prune_end_steps": 8, "freeze_masks_steps": 8, "held_out_batches": 4}
    changed["sparsify"]["soft_positions"] = "all"
    changed["sparsify"]["distillation"] |= {"soft_weight": 0.5, "attention_weight": 0.5}
    changed["teach_task"] |= {"epochs": 1}
    changed["finetune"]["epochs"] = 1
    changed["finetune"]["distillation"] |= {"attention_weight": 0.5}
    changed["quantize"] |= {"epochs": 1}
    changed["evaluate"] |= {"latency_runs": 10}
    return changed


def run(folder: Path) -> dict[str, Any]:
    changed = document()
    return {c.name: tiny.run(c, folder, changed) for c in tiny.commands(changed)}


@pytest.fixture(scope="module")
def twice(tmp_path_factory) -> list[tuple[Path, Mapping[str, Any]]]:
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    return [(folder / "data", run(folder)) for folder in folders]


def columns(path: Path) -> set[str]:
    with path.open() as file:
        return set(next(csv.reader(file)))


def test_the_same_bytes_twice(twice):
    (one, found), (two, again) = twice
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) >= 40
    differ = {f"data/{path.as_posix()}" for path in files if (one / path).read_bytes() != (two / path).read_bytes()}
    assert differ <= TIMED
    assert {name: metrics for name, metrics in found.items() if name != "report"} == {
        name: metrics for name, metrics in again.items() if name != "report"
    }


def test_the_corpus_is_pairs_and_its_text_is_counted(twice):
    data, metrics = twice[0]
    found = metrics["prepare_corpus"]
    for part in ("train", "held_out"):
        blocks = corpus.read_blocks(data / f"prepare_corpus/tokens/{part}.arrow")
        assert len(blocks) == found[f"{part}_blocks"]
        assert found[f"{part}_tokens"] == int(blocks[:]["attention_mask"].sum())
        assert 0.3 < found[f"{part}_next_pairs"] / found[f"{part}_blocks"] < 0.7
    assert found["documents"] == 300
    assert found["train_left_over_tokens"] + found["held_out_left_over_tokens"] <= 300


def test_every_part_of_the_losses_is_logged_by_name(twice):
    data, metrics = twice[0]
    assert columns(data / "plots/prepare_teacher.csv") >= {"loss", "hard", "next_sentence"}
    parts = {"loss", "hard", "soft", "next_sentence", "soft_next_sentence", "hidden", "attention"}
    assert columns(data / "plots/sparsify.csv") >= parts
    assert columns(data / f"plots/finetune/{TASK}.csv") >= {"loss", "hard", "soft", "attention"}
    for stage in ("prepare_teacher", "sparsify"):
        assert 0 <= metrics[stage]["held_out_next_sentence_accuracy"] <= 1


def test_the_models_have_the_head_and_the_task_model_its_pooler(twice):
    data, metrics = twice[0]
    teacher, sparse, tuned = (
        load_file(data / name / "model.safetensors")
        for name in ("prepare_teacher/model", "sparsify/model", f"finetune/{TASK}")
    )
    for model in (teacher, sparse):
        assert model["cls.seq_relationship.weight"].shape == (2, 48)
    assert metrics["sparsify"]["sparsity"] == pytest.approx(0.85, abs=1e-3)
    assert metrics[f"finetune@{TASK}"]["sparsity"] >= metrics["sparsify"]["sparsity"]
    # Fine-tuned from the sparse language model's, not from the task teacher's.
    pooler, dense = "bert.pooler.dense.weight", load_file(data / f"teach_task/{TASK}/model.safetensors")
    assert (tuned[pooler] - sparse[pooler]).norm() < (tuned[pooler] - dense[pooler]).norm()


def test_the_pruned_pooler_ships_in_integers(twice):
    data, metrics = twice[0]
    exported, scored = metrics[f"export@{TASK}"]["int8"], metrics[f"evaluate@{TASK}"]
    assert exported["kernels"] == {"MatMulIntegerToFloat": 13}, "twelve of the layers, and the pooler"
    assert scored["sparse"]["sparsity_of"]["pooler.dense"] == pytest.approx(0.85, abs=2e-3)
    assert scored["int8"]["sparsity_of"]["pooler.dense"] >= 0.85 - 2e-3
    pooler = load_file(data / f"quantize/{TASK}/model.safetensors")["bert.pooler.dense.weight"]
    (stored,) = (
        t for t in onnx.load(data / f"export/{TASK}/int8.onnx").graph.initializer if t.name == "pooler.dense.weight"
    )
    assert stored.data_type == onnx.TensorProto.INT8
    assert ((numpy_helper.to_array(stored) == 0) >= (pooler == 0).numpy().T).all(), "its zeros are zeros in the file"


def test_a_model_without_the_head_is_one_error(twice, tmp_path):
    """DistilBERT over the same vocabulary."""
    data, _ = twice[0]
    raw = tmp_path / "data/raw/tiny-bert"
    raw.mkdir(parents=True)
    for path in (data / "raw/tiny-bert").iterdir():
        (raw / path.name).write_bytes(path.read_bytes())
    (raw / "config.json").write_text(
        '{"model_type": "distilbert", "vocab_size": 162, "dim": 48, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}'
    )
    changed = document()
    (command,) = [c for c in tiny.commands(changed) if c.name == "prepare_teacher"]
    tokens = tmp_path / command.flags["tokens"]
    tokens.mkdir(parents=True)
    for path in (data / "prepare_corpus/tokens").iterdir():
        (tokens / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match="DistilBertForMaskedLM without next_sentence_label, token_type_ids"):
        tiny.run(command, tmp_path, changed)
