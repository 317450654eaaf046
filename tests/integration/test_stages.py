"""Every stage on the tiny profile: the same bytes twice, and what each stage promises."""

import csv
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline import report
from pipeline.params.document import parse
from pruneonce import quantization
from pruneonce.deployment import audit, execution, inspect, runtime
from pruneonce.errors import DataError, ExportError, ModelError, PatternBroken
from pruneonce.language import corpus
from pruneonce.language.likeness import likeness
from pruneonce.models import checkpoint
from pruneonce.sources import tables
from pruneonce.sparsity import gradual, least_squares, masks, movement, second_order
from pruneonce.tasks import examples
from pruneonce.tasks.splits import read_split
from tests.conftest import cpu_engine
from tests.integration import tiny
from tests.integration.conftest import digests
from tests.integration.tiny import TASK, Result

TIMES = ("median_ms", "p90_ms", "p95_ms", "p99_ms", "times_faster", "resident_bytes")
VARIANTS = ["dense", "sparse", "int8", "int8_sparse"]
TARGET = 0.85


def matrices(folder: Path) -> dict[str, np.ndarray]:
    """The prunable matrices as they lie in a checkpoint, by their name inside the body: read without the library."""
    stored = load_file(folder / "model.safetensors")
    found = {name.removeprefix("bert."): w.numpy() for name, w in stored.items() if name.startswith("bert.encoder.")}
    return {name.removesuffix(".weight"): w for name, w in found.items() if name.endswith(".weight") and w.ndim == 2}


def stored_in(path: Path) -> dict[str, np.ndarray]:
    """The matrices of an ONNX file that bear a layer's name, [out, in], read without the library."""
    proto = onnx.load(path)
    order = json.loads(next(p.value for p in proto.metadata_props if p.key == "pruneonce.prunable"))
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer if t.name.endswith(".weight")}
    named = {name.removesuffix(".weight"): array for name, array in arrays.items() if name.removesuffix(".weight") in order}
    return {name: array if order[name] == "out,in" else array.T for name, array in named.items()}


def again(result: Result, folder: Path, name: str, *copies: str, **changes: Mapping[str, Any]) -> Any:
    """Run one stage once more in `folder`, on copies of what it read, with other params (section -> values)."""
    document = tiny.document()
    for section, values in changes.items():
        document[section].update(values)
    for path in copies:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if not (folder / path).exists():
            (shutil.copytree if (result.folder / path).is_dir() else shutil.copy)(result.folder / path, folder / path)
    (command,) = [c for c in tiny.commands(document) if c.name == name]
    return tiny.run(command, folder, document)


@pytest.fixture
def floats_copied(first, monkeypatch) -> None:
    """An export takes over the float files of `first`, whose models it reads: the int8 file is another one."""

    def copied(model, linears, path, texts, *, relative_error):
        shutil.copy(first[f"export/{TASK}/{path.name}"], path)
        return first.metrics[f"export@{TASK}"][path.stem]

    monkeypatch.setattr("stages.export.export_float", copied)


class TestTwice:
    def test_every_command_of_dvc_yaml_ran(self, twice):
        names = [command.name for command in tiny.commands(tiny.document())]
        expected = ["fetch_local@tiny-bert", "fetch_local@topic", "fetch_local@corpus", "prepare_task@topic"]
        expected += ["list_tasks", "prepare_corpus", "prepare_teacher", "sparsify", "teach_task@topic", "finetune@topic"]
        expected += ["quantize@topic", "export@topic", "evaluate@topic", "report"]
        assert names == expected
        for result in twice:
            assert list(result.metrics) == names

    def test_every_out_has_the_same_bytes(self, twice):
        here, there = map(digests, twice)
        timed = {"data/latency/topic.json", "data/report/cards/topic.md"}
        timed |= {f"data/report/report.{ending}" for ending in ("md", "json", "html")}
        assert sorted(here) == sorted(there)
        assert timed < set(here)
        assert {path for path in here if here[path] != there[path]} <= timed
        assert len(here) - len(timed) >= 50

    def test_the_report_differs_in_times_only(self, twice):
        tables = [json.loads(result["report/report.json"].read_text()) for result in twice]
        bare = [[{k: v for k, v in row.items() if k not in TIMES} for row in table] for table in tables]
        assert bare[0] == bare[1]
        assert [len(row) for row in bare[0]] == [len(tables[0][0]) - len(TIMES)] * len(VARIANTS)

    def test_the_page_of_the_same_outs_has_the_same_bytes(self, twice, tmp_path):
        """Written here, and in another process with another hash seed and another path."""
        there, names = twice[1], ("metrics/evaluate", "metrics/export", "latency", "answers", "plots")
        again(there, tmp_path, "report", *(f"data/{name}" for name in names))
        for name in ("report.html", "report.md", "report.json", "cards/topic.md"):
            assert (tmp_path / "data/report" / name).read_bytes() == there[f"report/{name}"].read_bytes(), name

    def test_metrics_are_the_same(self, twice):
        here, there = (json.loads(json.dumps(result.metrics)) for result in twice)
        assert here == there
        assert len(here) == 14

    def test_no_out_names_the_folder_it_was_made_in(self, first):
        files = [first.folder / path for path in digests(first)]
        assert [f.name for f in files if str(first.folder).encode() in f.read_bytes()] == []
        assert len(files) >= 50


class TestPreparation:
    def test_sources_are_copied_as_they_are(self, first):
        documents = {"tiny-bert/vocab.txt": "model/vocab.txt", "topic/test.tsv": "text/topic-test.tsv"}
        documents["corpus/train.txt"] = "text/corpus.txt"
        for copy, origin in documents.items():
            assert (first["raw"] / copy).read_bytes() == (tiny.ROOT / "tests/tiny" / origin).read_bytes()
        assert first.metrics["fetch_local@tiny-bert"]["files"] == 3

    def test_the_splits_share_no_text(self, first):
        splits = {name: read_split(first[f"tasks/{TASK}/{name}.arrow"])["text"][:] for name in examples.SPLITS}
        assert {name: len(texts) for name, texts in splits.items()} == {"train": 144, "validation": 16, "test": 60}
        assert len({text for texts in splits.values() for text in texts}) == 144 + 16 + 60
        given = [row["text"] for row in tables.read(tiny.ROOT / "tests/tiny/text/topic-test.tsv", ["text"])]
        assert splits["test"] == given

    def test_train_rows_that_stand_in_test_are_dropped_and_counted(self, first, tmp_path):
        test = next(tables.read(tiny.ROOT / "tests/tiny/text/topic-test.tsv", ["text", "label"]))
        shutil.copytree(first["raw"], tmp_path / "data/raw")
        with (tmp_path / "data/raw/topic/train.tsv").open("a") as file:
            file.write(f"  {test['text'].upper()}\t{test['label']}\n\tkitchen\n")
        found = again(first, tmp_path, f"prepare_task@{TASK}")
        assert found["dropped"]["train"] == {"empty": 1, "duplicate": 0, "held_out": 1}
        assert found["train"]["rows"] == 144
        for name in examples.SPLITS:
            path = f"tasks/{TASK}/{name}.arrow"
            assert (tmp_path / "data" / path).read_bytes() == first[path].read_bytes()

    def test_the_corpus_holds_no_test_text(self, first, tmp_path):
        test = next(tables.read(tiny.ROOT / "tests/tiny/text/topic-test.tsv", ["text"]))["text"]
        shutil.copytree(first["raw"], tmp_path / "data/raw")
        corpus = tmp_path / "data/raw/corpus/train.txt"
        lines = corpus.read_text().splitlines()
        corpus.write_text("\n".join([*lines[:100], test, *lines[100:], f" {test.upper()}  ", "", lines[0]]) + "\n")
        found = again(first, tmp_path, "prepare_corpus", "data/tasks", "data/task_names.json")
        assert {k: found[k] for k in ("documents", "in_test", "empty", "duplicate")} == {
            "documents": 300,
            "in_test": 2,
            "empty": 1,
            "duplicate": 1,
        }
        for part in ("train", "held_out"):
            path = f"prepare_corpus/tokens/{part}.arrow"
            assert (tmp_path / "data" / path).read_bytes() == first[path].read_bytes()
        shutil.rmtree(tmp_path / "data/tasks")
        (tmp_path / "data/tasks").mkdir()
        with pytest.raises(DataError, match=f"expected the test split of task '{TASK}'.*found none. Run `prepare_task`"):
            again(first, tmp_path, "prepare_corpus")
        (tmp_path / "data/task_names.json").write_text("[]\n")
        assert again(first, tmp_path, "prepare_corpus")["documents"] == 301, "without tasks the text is nobody's test"


class TestTraining:
    def test_the_teacher_has_learned_something(self, first):
        vocabulary = len((tiny.ROOT / "tests/tiny/model/vocab.txt").read_text().split())
        found = first.metrics["prepare_teacher"]
        assert math.isfinite(found["held_out_loss"])
        assert found["held_out_loss"] < math.log(vocabulary)
        assert found["held_out_perplexity"] == pytest.approx(math.exp(found["held_out_loss"]))

    def test_the_teacher_is_dense(self, first):
        for folder in ("prepare_teacher/model", f"teach_task/{TASK}"):
            weights = matrices(first[folder])
            assert len(weights) == 12
            assert all(np.count_nonzero(w) == w.size for w in weights.values())

    def test_every_prunable_matrix_reaches_the_target(self, first):
        weights = matrices(first["sparsify/model"])
        assert len(weights) == 12
        for name, weight in weights.items():
            assert (weight == 0).sum() == round(TARGET * weight.size), name
        zeros, size = (sum(f(w) for w in weights.values()) for f in (lambda w: (w == 0).sum(), np.size))
        assert first.metrics["sparsify"]["sparsity"] == pytest.approx(zeros / size, abs=1e-12)
        assert math.isfinite(first.metrics["sparsify"]["held_out_loss"])

    def test_student_and_teacher_are_compared_on_plain_text(self, first):
        """So the numbers of two recipes mean the same, whatever share of the tokens each of them masks."""
        asked = tiny.document()
        assert asked["sparsify"]["masking_probability"] > 0
        sizes = {"batch_size": asked["sparsify"]["batch_size"], "seed": asked["common"]["seed"]}
        tokenizer = checkpoint.load_tokenizer(first["sparsify/model"])
        blocks = corpus.read_blocks(first["prepare_corpus/tokens/held_out.arrow"])
        batches = corpus.MaskedBlocks(blocks, tokenizer, probability=0.0, **sizes)
        models = [
            checkpoint.load_masked_lm(first[f"{name}/model"], attention="eager") for name in ("sparsify", "prepare_teacher")
        ]
        found = likeness(*models, batches.first(asked["sparsify"]["held_out_batches"]), engine=cpu_engine())
        measured = first.metrics["sparsify"]
        assert {name: measured[name] for name in found} == pytest.approx(found, rel=1e-4)

    @pytest.mark.parametrize("stage", ["finetune", "quantize"])
    def test_what_was_pruned_once_stays_pruned(self, first, stage):
        before, after = matrices(first["sparsify/model"]), matrices(first[f"{stage}/{TASK}"])
        assert before.keys() == after.keys()
        assert len(after) == 12
        for name, weight in before.items():
            assert (after[name][weight == 0] == 0).all(), name
            assert not np.signbit(after[name][weight == 0]).any(), "a zero with a sign bit does not compress"
        assert sum((after[n] != before[n]).sum() for n in after) > 1000, "nothing was trained"
        assert first.metrics[f"{stage}@{TASK}"]["sparsity"] >= first.metrics["sparsify"]["sparsity"]

    def test_every_quantized_linear_has_a_range_that_holds_zero_and_more(self, first):
        ranges = json.loads((first[f"quantize/{TASK}"] / "quantization.json").read_text())["ranges"]
        assert sorted(ranges) == sorted(matrices(first[f"quantize/{TASK}"]))
        assert all(low < high for low, high in ranges.values())

    def test_histories_have_a_row_every_fifth_step(self, first):
        steps = {"prepare_teacher": 60, "sparsify": 40, f"teach_task/{TASK}": 90, f"finetune/{TASK}": 90}
        steps[f"quantize/{TASK}"] = 36
        for name, count in steps.items():
            with first[f"plots/{name}.csv"].open() as file:
                rows = list(csv.DictReader(file))
            assert [int(row["step"]) for row in rows] == list(range(0, count, 5)), name
            assert all(math.isfinite(float(row["loss"])) for row in rows), name
            assert "tokens_per_second" not in rows[0]

    def test_sparsity_rises_to_the_target_and_stays(self, first):
        with first["plots/sparsify.csv"].open() as file:
            found = [(int(row["step"]), float(row["sparsity"])) for row in csv.DictReader(file)]
        values = [sparsity for _, sparsity in found]
        assert values == sorted(values)
        assert values[0] == pytest.approx(0.5, abs=1e-3)
        assert all(sparsity == pytest.approx(TARGET, abs=1e-3) for step, sparsity in found if step >= 24)


class TestFiles:
    def test_the_files_hold_the_weights_and_zeros_that_were_trained(self, first):
        export = first[f"export/{TASK}"]
        dense, sparse, int8 = (stored_in(export / f"{v}.onnx") for v in ("dense", "sparse", "int8"))
        taught, tuned = matrices(first[f"teach_task/{TASK}"]), matrices(first[f"finetune/{TASK}"])
        pruned = matrices(first["sparsify/model"])
        assert set(dense) == set(sparse) == set(int8) == set(pruned)
        assert len(pruned) == 12
        for name, weight in pruned.items():
            assert np.array_equal(dense[name], taught[name])
            assert np.array_equal(sparse[name], tuned[name])
            assert (sparse[name][weight == 0] == 0).all()
            assert int8[name].dtype == np.int8
            assert (int8[name][weight == 0] == 0).all()
            assert (int8[name] != 0).any()

    def test_int8_runs_on_integers_and_the_others_do_not(self, first):
        found = first.metrics[f"export@{TASK}"]
        assert list(found) == ["dense", "sparse", "int8"]
        assert sum(found["int8"]["kernels"].values()) == 12
        assert set(found["int8"]["kernels"]) <= set(audit.INTEGER_KERNELS)
        for variant in found:
            graph = audit.optimised(first[f"export/{TASK}/{variant}.onnx"]).graph
            integer = [node.op_type for node in graph.node if node.op_type in audit.INTEGER_KERNELS]
            assert len(integer) == (12 if variant == "int8" else 0)
            assert variant == "int8" or not set(found[variant]["kernels"]) & set(audit.INTEGER_KERNELS)

    @pytest.mark.usefixtures("floats_copied")
    def test_the_tables_of_the_int8_file_are_int8(self, first, tmp_path):
        def tables(folder: Path) -> dict[str, int]:
            graph = onnx.load(folder / f"data/export/{TASK}/int8.onnx").graph
            return {t.name: t.data_type for t in graph.initializer if t.name.endswith("embeddings.weight")}

        found = tables(first.folder)
        assert len(found) == 2  # words and positions; token types are one constant row
        assert set(found.values()) == {onnx.TensorProto.INT8}
        folders = [f"data/{s}/{TASK}" for s in ("teach_task", "finetune", "quantize", "tasks")]
        folders += [f"data/metrics/{s}" for s in ("teach_task", "finetune", "quantize")]
        again(first, tmp_path, f"export@{TASK}", *folders, export={"embeddings": "fp32"})
        assert tables(tmp_path) == dict.fromkeys(found, onnx.TensorProto.FLOAT)

    @pytest.mark.parametrize(("variant", "folder"), [("dense", "teach_task"), ("sparse", "finetune")])
    def test_the_score_is_that_of_the_model_in_pytorch(self, first, variant, folder):
        model = AutoModelForSequenceClassification.from_pretrained(first[f"{folder}/{TASK}"]).eval()
        tokenizer = AutoTokenizer.from_pretrained(first[f"teach_task/{TASK}"])
        rows = list(tables.read(tiny.ROOT / "tests/tiny/text/topic-test.tsv", ["text", "label"]))
        inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        with torch.inference_mode():
            decisions = model(**inputs).logits.argmax(-1).tolist()
        right = [model.config.id2label[d] == row["label"] for d, row in zip(decisions, rows, strict=True)]
        found = first.metrics[f"evaluate@{TASK}"][variant]
        assert (found["rows"], found["score"], found["metric"]) == (60, pytest.approx(sum(right) / 60), "accuracy")
        assert found["score"] > 0.8, "the task can be learned"

    def test_evaluation_counts_what_the_files_hold(self, first):
        found = first.metrics[f"evaluate@{TASK}"]
        assert list(found) == VARIANTS
        for variant, score in found.items():
            path = first[f"export/{TASK}/{variant.removesuffix('_sparse')}.onnx"]
            weights = stored_in(path)
            assert score["file_bytes"] == path.stat().st_size
            assert 0 < score["packed_bytes"] < score["file_bytes"]
            assert score["sparsity_of"] == pytest.approx({n: (w == 0).mean() for n, w in weights.items()})
            assert score["score_low"] <= score["score"] <= score["score_high"]
        assert found["dense"]["sparsity"] < 0.01
        assert found["int8"]["sparsity"] >= found["sparse"]["sparsity"] == pytest.approx(TARGET, abs=1e-3)
        sizes = [found[v]["packed_bytes"] for v in ("dense", "sparse", "int8")]
        assert sizes == sorted(sizes, reverse=True)

    def test_the_sparse_kernels_answer_as_onnx_runtimes_own(self, first):
        """It is one file, and its logits differ by rounding."""
        found = first.metrics[f"evaluate@{TASK}"]
        parity = found["int8_sparse"]["parity"]
        assert parity["rows"] == 60
        assert parity["max_difference"] < 0.05 * parity["max_logit"]
        assert parity["same_decision"] == 1
        assert found["int8_sparse"] == {**found["int8"], "parity": parity}

    def test_latencies_are_recorded_apart(self, first):
        times = json.loads(first[f"latency/{TASK}.json"].read_text())
        machine = times.pop("machine")
        assert machine["versions"]["python"].startswith("3.11")
        assert machine["cores"] >= 1
        assert sorted(times) == sorted(VARIANTS)
        assert all(t["tokens"] == 32 and t["runs"] == 20 for t in times.values())
        assert all(0 < t["median_ms"] <= t["p90_ms"] <= t["p95_ms"] <= t["p99_ms"] for t in times.values())
        assert all(100_000 < t["resident_bytes"] < 100e6 for t in times.values())
        operators = times.pop("int8_sparse")["operators_ms"].keys()
        assert {"SparseLinear", "Attention", "AddNormalize"} < operators
        assert "MatMulIntegerToFloat" not in operators
        assert all(
            t["operators_ms"].keys() == first.metrics[f"export@{TASK}"][v]["operators"].keys() for v, t in times.items()
        )

    def test_the_report_has_a_row_for_each_variant(self, first):
        rows = json.loads(first["report/report.json"].read_text())
        assert [(row["task"], row["variant"]) for row in rows] == [(TASK, v) for v in VARIANTS]
        scores = first.metrics[f"evaluate@{TASK}"]
        assert first.metrics["report"] == {TASK: {v: scores[v]["score"] for v in scores}}
        page = first["report/report.md"].read_text()
        lines = [line for line in page.splitlines() if line.startswith(f"| {TASK} ")]
        assert page.startswith("# Two-layer BERT, pruned once\n")
        for line, row in zip(lines[:4], rows, strict=True):
            assert f"| {report.VARIANTS[row['variant']]} |" in line
            assert f" {row['score']:.2%} " in line
            assert f" {row['sparsity']:.2%} " in line
        assert [line.count("accuracy") for line in lines[4:]] == [1] * 4
        assert all(f"macro_f1 {row['metrics']['macro_f1']:.2%}" in line for line, row in zip(lines[4:], rows, strict=True))
        with first["report/sizes.csv"].open() as file:
            assert [row["variant"] for row in csv.DictReader(file)] == VARIANTS


def test_without_the_library_evaluation_says_so_and_the_report_has_three_rows(first, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(execution, "LIBRARY", tmp_path / "kernels.so")
    reads = (f"data/{s}/{TASK}" for s in ("teach_task", "tasks", "export"))
    found = again(first, tmp_path, f"evaluate@{TASK}", *reads, evaluate={"latency_runs": 10})
    assert found == {v: first.metrics[f"evaluate@{TASK}"][v] for v in VARIANTS[:3]}
    said = f"\nevaluate {TASK}: no row for the sparse kernels: their library is not at {tmp_path}/kernels.so. Build it: "
    assert said in capsys.readouterr().err
    assert list(again(first, tmp_path, "report", "data/metrics/export", "data/plots")[TASK]) == VARIANTS[:3]
    assert "sparse kernels" not in (tmp_path / "data/report/report.md").read_text()


def test_answers_of_the_sparse_kernels_beyond_the_tolerance_are_refused(first, tmp_path):
    reads = (f"data/{s}/{TASK}" for s in ("teach_task", "tasks", "export"))
    with pytest.raises(ExportError, match=r"expected the sparse kernels within a relative error of 1e-09 .* build them"):
        again(first, tmp_path, f"evaluate@{TASK}", *reads, evaluate={"sparse_tolerance": 1e-9})


@pytest.mark.usefixtures("floats_copied")
def test_weights_of_seven_bits_reach_the_file(first, tmp_path):
    reads = [f"data/{s}/{TASK}" for s in ("teach_task", "tasks", "finetune")]
    reads += [f"data/metrics/{s}" for s in ("teach_task", "finetune")]
    again(first, tmp_path, f"quantize@{TASK}", *reads, quantize={"weight_bits": 7, "epochs": 1})
    found = again(first, tmp_path, f"export@{TASK}")["int8"]
    weights = stored_in(tmp_path / f"data/export/{TASK}/int8.onnx")
    assert {int(np.abs(w.astype(int)).max()) for w in weights.values()} == {63}
    assert {int(np.abs(w.astype(int)).max()) for w in stored_in(first[f"export/{TASK}/int8.onnx"]).values()} == {127}
    assert found["parity_of_exact_sums"]["rows"] == found["parity"]["rows"] == 16


def test_a_teacher_that_has_learned_nothing_is_said(first, tmp_path, capsys):
    reads = ("data/prepare_teacher", "data/tasks")
    found = again(first, tmp_path, f"teach_task@{TASK}", *reads, teach_task={"epochs": 0.1, "learning_rate": 1e-9})
    assert found["validation_score"] <= found["chance_score"]
    said = capsys.readouterr().err
    assert f"teach_task {TASK}: warning: expected a teacher that has learned the task, found accuracy" in said
    assert f"change epochs or learning_rate in tasks.{TASK}.teach_task" in said
    learned = first.metrics[f"teach_task@{TASK}"]
    assert learned["validation_score"] > learned["chance_score"] > 0.3
    again(first, tmp_path, f"teach_task@{TASK}", *reads)
    assert "warning" not in capsys.readouterr().err


class TestBrokenPromises:
    """A stage that does not keep its promise ends in a named error and writes no model."""

    def test_a_tampered_zero_is_found(self, first):
        given = {name: torch.from_numpy(w == 0) for name, w in matrices(first["sparsify/model"]).items()}
        kept = {name: torch.from_numpy(w == 0) for name, w in matrices(first[f"finetune/{TASK}"]).items()}
        masks.check_pattern(given, kept)
        name = sorted(given)[3]
        row, column = given[name].nonzero()[0].tolist()
        tampered = {**kept, name: kept[name].clone()}
        tampered[name][row, column] = False
        with pytest.raises(PatternBroken, match=rf"1 of 12 matrices: \{{'{name}': 1\}}"):
            masks.check_pattern(given, tampered)
        with pytest.raises(PatternBroken, match="missing"):
            masks.check_pattern(given, {k: v for k, v in kept.items() if k != name})

    @pytest.mark.parametrize("stage", ["finetune", "quantize"])
    def test_a_student_that_is_not_locked(self, first, tmp_path, monkeypatch, stage):
        monkeypatch.setattr(masks, "lock", lambda model: masks.zeros(model, list(masks.masked_linears(model))))
        reads = [f"data/teach_task/{TASK}", f"data/tasks/{TASK}", f"data/finetune/{TASK}", "data/sparsify"]
        copies = [path for path in reads if path != f"data/{stage}/{TASK}"]
        with pytest.raises(PatternBroken, match="zeros lost in 12 of 12 matrices"):
            again(first, tmp_path, f"{stage}@{TASK}", *copies, **{stage: {"epochs": 1}})
        assert not (tmp_path / f"data/{stage}/{TASK}").exists()

    def test_a_student_that_is_not_pruned_enough(self, first, tmp_path, monkeypatch):
        monkeypatch.setattr(gradual, "cubic_sparsity", lambda step, **ramp: 0.8)
        with pytest.raises(PatternBroken, match=r"expected sparsity 0\.85 .* missing in 12 of 12 matrices"):
            again(first, tmp_path, "sparsify", "data/prepare_teacher", "data/prepare_corpus")
        assert not (tmp_path / "data/sparsify/model").exists()

    def test_a_file_without_the_zeros(self, first):
        pattern = {name: w == 0 for name, w in matrices(first["sparsify/model"]).items()}
        for variant in ("sparse", "int8"):
            inspect.check_zeros(first[f"export/{TASK}/{variant}.onnx"], pattern)
        with pytest.raises(PatternBroken, match=r"to be zero in dense\.onnx"):
            inspect.check_zeros(first[f"export/{TASK}/dense.onnx"], pattern)

    def test_a_file_that_multiplies_floats(self, first):
        path = first[f"export/{TASK}/sparse.onnx"]
        kernels = audit.Audit(path).kernels(stored_in(path))
        assert len(kernels) == 12
        with pytest.raises(ExportError, match="expected an integer kernel for every quantized linear"):
            audit.check_integer(kernels)

    def test_a_file_that_is_not_the_model(self, first, tmp_path, monkeypatch):
        measured = runtime.logits
        monkeypatch.setattr(runtime, "logits", lambda session, batch: measured(session, batch) * 1.01)
        folders = [f"data/{s}/{TASK}" for s in ("teach_task", "finetune", "quantize", "tasks")]
        folders += [f"data/metrics/{s}" for s in ("teach_task", "finetune", "quantize")]
        with pytest.raises(ExportError, match=r"expected ONNX Runtime within a relative error of 0\.0001 "):
            again(first, tmp_path, f"export@{TASK}", *folders)

    def test_a_model_that_did_not_go_through_quantize(self, first):
        saved = json.loads((first[f"quantize/{TASK}"] / "quantization.json").read_text())
        assert len(saved["ranges"]) == 12
        with pytest.raises(ModelError, match=r"expected quantization\.json"):
            quantization.load(torch.nn.Linear(1, 1), first[f"finetune/{TASK}"])

    def test_a_folder_without_weights(self, first, tmp_path):
        with pytest.raises(ModelError, match="expected the weights of a bert"):
            again(
                first,
                tmp_path,
                "prepare_teacher",
                "data/raw",
                "data/prepare_corpus",
                prepare_teacher={"weights": "pretrained"},
            )


def test_the_paper_s_recipe_runs_too(first, tmp_path):
    """Magnitude, the rewound schedule, hard and soft loss at every position, micro-batches: the other branches."""
    changes = {
        "first_criterion": "magnitude",
        "criterion": "magnitude",
        "schedule": "rewound",
    }
    weights = {"hard_weight": 0.5, "soft_weight": 0.5, "hidden_weight": 0.0, "attention_weight": 0.0}
    changes |= {"distillation": {"temperature": 2.0, **weights}}
    changes |= {"soft_positions": "all", "micro_batches": 2, "dropout": 0.1}
    found = again(first, tmp_path, "sparsify", "data/prepare_teacher", "data/prepare_corpus", sparsify=changes)
    weights = matrices(tmp_path / "data/sparsify/model")
    assert all((w == 0).sum() == round(TARGET * w.size) for w in weights.values())
    assert len(weights) == 12
    assert math.isfinite(found["held_out_loss"])
    with (tmp_path / "data/plots/sparsify.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"hard", "soft"} < set(rows[0])
    # By hand from the definition: 40 steps, 4 of warm-up, pruned at 0, 8 and 16, and at 24 the ramp ends; T' = 16.
    by_twelve = {0: 0, 5: 11, 10: 14, 15: 9, 20: 12, 25: 15, 30: 10, 35: 5}
    found = {int(row["step"]): float(row["learning_rate"]) for row in rows}
    assert found == pytest.approx({step: 2e-3 * left / 12 for step, left in by_twelve.items()}, rel=1e-4)


@pytest.mark.parametrize(
    ("first_criterion", "criterion"),
    [
        ("magnitude", "magnitude"),
        ("magnitude", "second_order"),
        ("magnitude", "movement"),
        ("second_order", "magnitude"),
        ("least_squares", "magnitude"),
        ("magnitude", "least_squares"),
    ],
)
def test_what_prunes_and_when(first, tmp_path, monkeypatch, first_criterion, criterion):
    """The first jump by its own criterion, the rest by the other; masks move on at the target until they are frozen."""
    calls: list[tuple[str, float]] = []

    def spied(name, prune):
        def call(*args, **options):
            calls.append(("movement" if options.get("score") is movement.score else name, round(args[-1], 4)))
            return prune(*args, **options)

        return call

    monkeypatch.setattr(masks, "prune", spied("magnitude", masks.prune))
    monkeypatch.setattr(second_order, "prune", spied("second_order", second_order.prune))
    monkeypatch.setattr(least_squares, "prune", spied("least_squares", least_squares.prune))
    changes = {"first_criterion": first_criterion, "criterion": criterion, "steps": 24}
    changes |= {"prune_every_steps": 4, "prune_end_steps": 8, "freeze_masks_steps": 16, "held_out_batches": 1}
    again(first, tmp_path, "sparsify", "data/prepare_teacher", "data/prepare_corpus", sparsify=changes)
    # 0.85 - 0.35 (1 - 4/8)^3 half way up the ramp; at 12 and 16 the target is kept, and after it nothing moves.
    sparsities = [0.5, 0.8063, 0.85, 0.85, 0.85]
    assert calls == [(first_criterion, 0.5), *((criterion, s) for s in sparsities[1:])]
    with (tmp_path / "data/plots/sparsify.csv").open() as file:
        assert [round(float(row["sparsity"]), 2) for row in csv.DictReader(file)] == [0.5, 0.81, 0.85, 0.85, 0.85]


def test_blocks_by_movement_over_the_model(first, tmp_path):
    """Nothing is pruned before it has moved; every block is whole; the sparsity is the model's, not a matrix's."""
    changes = {"pattern": "4x1", "scope": "global", "first_criterion": "magnitude", "criterion": "movement"}
    changes |= {"initial_sparsity": 0.0, "gradient_checkpointing": True}
    found = again(first, tmp_path, "sparsify", "data/prepare_teacher", "data/prepare_corpus", sparsify=changes)
    kept = [np.add.reduceat(w != 0, range(0, len(w), 4)) for w in matrices(tmp_path / "data/sparsify/model").values()]
    assert found["sparsity"] == pytest.approx(TARGET, abs=1e-4)
    assert {count for blocks in kept for count in np.unique(blocks)} == {0, 4}
    assert len({float((blocks == 0).mean()) for blocks in kept}) > 6
    assert len(kept) == 12


def test_two_of_four_by_second_order_then_by_magnitude(first, tmp_path):
    changes = {"pattern": "2:4", "sparsity": 0.5, "initial_sparsity": 0.25, "criterion": "magnitude"}
    again(first, tmp_path, "sparsify", "data/prepare_teacher", "data/prepare_corpus", sparsify=changes)
    weights = matrices(tmp_path / "data/sparsify/model")
    assert all(((w.reshape(-1, 4) != 0).sum(1) == 2).all() for w in weights.values())
    assert len(weights) == 12


@pytest.mark.usefixtures("floats_copied")
@pytest.mark.parametrize(("start", "origin", "sparsity"), [("sparse", "finetune", TARGET), ("dense", "teach_task", 0.0)])
def test_post_training_quantization_of_either_model(first, tmp_path, start, origin, sparsity):
    """No epochs: the weights in the int8 file are those of the model it starts from, rounded."""
    reads = [f"data/{s}/{TASK}" for s in ("teach_task", "tasks", "finetune")]
    reads += [f"data/metrics/{s}" for s in ("teach_task", "finetune")]
    ptq = {"epochs": 0, "start": start}
    found = again(first, tmp_path, f"quantize@{TASK}", *reads, quantize=ptq)
    assert found["validation_score"] == found["ptq_validation_score"] > 0.5
    assert found["sparsity"] == pytest.approx(sparsity, abs=1e-3)
    assert (tmp_path / f"data/plots/quantize/{TASK}.csv").read_text() == "step,loss\n"
    weights, given = matrices(tmp_path / f"data/quantize/{TASK}"), matrices(first[f"{origin}/{TASK}"])
    assert len(weights) == 12
    assert all(np.array_equal(weights[name], given[name]) for name in given)
    again(first, tmp_path, f"export@{TASK}")
    scores = again(first, tmp_path, f"evaluate@{TASK}", evaluate={"latency_runs": 10})["int8"]
    stored = stored_in(tmp_path / f"data/export/{TASK}/int8.onnx")
    zeros = sum((w == 0).sum() for w in stored.values()) / sum(w.size for w in stored.values())
    assert scores["sparsity"] == pytest.approx(zeros), "counted in the file, with what rounding added"
    assert sparsity - 1e-3 < scores["sparsity"] < sparsity + 0.05
    assert scores["score"] > 0.5
    for name, weight in given.items():
        step = np.abs(weight).max(1, keepdims=True) / 127
        assert np.abs(stored[name] * step - weight).max() <= 0.5 * step.max() * (1 + 1e-5)


def test_delayed_quantization_trains_in_float_first(first, tmp_path):
    """Until it begins, the losses are those of a training that begins last of all; from then on they are not."""
    losses = {}
    for begin in (0.5, 0.9):
        folder = tmp_path / str(begin)
        reads = (f"data/{s}/{TASK}" for s in ("teach_task", "tasks", "finetune"))
        late = {"epochs": 1, "begin_ratio": begin, "freeze_ranges_ratio": 1.0}
        again(first, folder, f"quantize@{TASK}", *reads, quantize=late)
        with (folder / f"data/plots/quantize/{TASK}.csv").open() as file:
            losses[begin] = [row["soft"] for row in csv.DictReader(file)]
    assert len(losses[0.5]) == 4  # of 18 steps, each fifth
    assert losses[0.5][:2] == losses[0.9][:2]
    assert losses[0.5][2] != losses[0.9][2]


def test_a_task_s_own_numbers_replace_those_of_the_recipe():
    document = tiny.document()
    document["tasks"][TASK]["finetune"] = {"epochs": 7}
    loaded = parse(document, "tiny")
    recipe = parse(tiny.document(), "tiny").section("finetune", TASK)
    assert loaded.section("finetune", TASK) == recipe.model_copy(update={"epochs": 7})
    assert loaded.section("teach_task", TASK).epochs == 5
