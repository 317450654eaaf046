"""Every kind of task from a user's file to int8 ONNX: one block of params, no code, on the tiny model."""

import csv
import json
import random
import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import ndcg_score
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks import search
from pipeline.params.metrics import METRICS
from pipeline.tracking import packaging
from pruneonce import answers
from pruneonce.deployment import audit, execution, packing, runtime
from pruneonce.errors import DataError
from pruneonce.models import checkpoint
from pruneonce.serving.predictor import Predictor
from pruneonce.tasks import examples, kinds, splits
from pruneonce.tasks.batches import evaluation_batches, in_split_order
from pruneonce.tasks.tagging import OUTSIDE
from tests.conftest import TINY
from tests.integration import tiny
from tests.pages import blocks

WEATHER = ["rain", "snow", "storm", "wind"]
KITCHEN = ["salt", "soup", "bowl", "knife"]
FILLER = ["the", "old", "harbour", "left", "river", "again", "late", "heavy"]
QUICK: dict[str, Any] = {"teach_task": {"epochs": 4}, "finetune": {"epochs": 2}, "quantize": {"epochs": 0.5}}
BLOCKS: dict[str, dict[str, Any]] = {
    "pairs": {"kind": "classification", "metric": "f1", "text": "premise", "pair": "hypothesis", "label": "same"},
    "number": {"kind": "regression", "metric": "spearman", "text": "text", "label": "score"},
    "labels": {"kind": "multi_label", "metric": "micro_f1", "text": "text", "label": "labels"},
    "tags": {"kind": "token_classification", "metric": "entity_f1", "text": "words", "label": "tags"},
    "answers": {"kind": "question_answering", "metric": "f1", "text": "question", "pair": "context", "label": "answers"},
    "vectors": {"kind": "embedding", "metric": "spearman", "text": "text", "label": "topic"},
}


def words(draw: random.Random, count: int) -> list[str]:
    return [draw.choice(WEATHER + KITCHEN if draw.random() < 0.3 else FILLER) for _ in range(count)]


TABLE = [(" ".join(words(random.Random(i), 9)), "ab"[i % 2]) for i in range(30)]  # texts and their groups


def write_csv(path: Path, header: str, rows: list[tuple[str, ...]]) -> None:
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")


def write_sources(folder: Path) -> None:
    """One file for each task, in a format that its cells fit in; a language model of one layer, quick to export."""
    shutil.copytree(TINY / "model", folder / "model")
    config = json.loads((folder / "model/config.json").read_text())
    (folder / "model/config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    torch.manual_seed(3)
    checkpoint.random_masked_lm(folder / "model", attention="eager").save_pretrained(folder / "model")  # its own teacher
    draw = random.Random(7)
    texts = [words(draw, draw.randint(5, 12)) for _ in range(120)]
    lines = [" ".join(text) for text in texts]

    pairs = [(line, draw.choice([WEATHER, KITCHEN])) for line in lines]
    pairs = [(a, f"{draw.choice(b)} {' '.join(words(draw, 3))}", "yes" if b == WEATHER else "no") for a, b in pairs]
    write_csv(folder / "pairs.csv", "premise,hypothesis,same", pairs)
    write_csv(
        folder / "number.csv",
        "text,score",
        [(a, str(sum(word in WEATHER for word in t))) for a, t in zip(lines, texts, strict=True)],
    )
    found = [";".join(w for w in ("rain", "salt", "river") if w in text) for text in texts]
    write_csv(
        folder / "labels.csv", "text,labels", [(a, f'"{b.replace(";", ",")}"') for a, b in zip(lines, found, strict=True)]
    )
    topics = ["weather" if sum(w in WEATHER for w in t) > sum(w in KITCHEN for w in t) else "other" for t in texts]
    write_csv(folder / "vectors.csv", "text,topic", [*zip(lines, topics, strict=True)])
    tags = [["B-W" if w in WEATHER else "B-K" if w in KITCHEN else "O" for w in text] for text in texts]
    table = [json.dumps({"words": a, "tags": b}) for a, b in zip(texts, tags, strict=True)]
    (folder / "tags.jsonl").write_text("\n".join(table) + "\n")
    pq.write_table(pa.Table.from_pylist([question(draw) for _ in range(60)]), folder / "answers.parquet")


def question(draw: random.Random) -> dict[str, Any]:
    """Which word follows the one asked for, in a context of two windows; two annotators."""
    context = [draw.choice(FILLER) for _ in range(36)]
    place = draw.randrange(2, 34)
    asked, context[place + 1] = draw.choice(WEATHER), draw.choice(KITCHEN)
    context[place] = asked
    start = len(" ".join(context[: place + 1])) + 1
    answers = {
        "text": [context[place + 1], " ".join(context[place : place + 2])],
        "answer_start": [start, start - len(asked) - 1],
    }
    return {"question": f"left the {asked}", "context": " ".join(context), "answers": answers}


def document(folder: Path) -> dict[str, Any]:
    """The tiny profile with these tasks in place of its own: for each a source and a block."""
    found = tiny.document()
    found["prepare_corpus"]["next_sentence"] = (
        True  # the language model has a pooler, which is pruned: not every kind has one
    )
    found["prepare_teacher"] |= {"steps": 20, "warmup_steps": 2}
    found["sparsify"] |= {"criterion": "magnitude", "steps": 12, "warmup_steps": 1, "prune_end_steps": 8}
    found["sparsify"] |= {"freeze_masks_steps": 8, "prune_every_steps": 4}
    found["evaluate"] |= {"resamples": 50, "latency_runs": 10, "warmup_runs": 1}
    found["fetch_local"] = {name: found["fetch_local"][name] for name in ("tiny-bert", "corpus")}
    found["fetch_local"]["tiny-bert"]["path"] = str(folder / "model")
    found["tasks"] = {}
    for name, block in BLOCKS.items():
        (path,) = folder.glob(f"{name}.*")
        found["fetch_local"][name] = {"path": str(path), "members": {f"train{path.suffix}": "."}, "sha256": None}
        found["tasks"][name] = {"prepare_task": {"source": name, **block}, **QUICK}
    answers = found["tasks"]["answers"]
    answers["prepare_task"] |= {"max_tokens": 28, "stride_tokens": 6, "max_answer_tokens": 4, "n_best": 5}
    for stage in ("teach_task", "finetune", "quantize"):
        answers[stage] = {**answers[stage], "max_tokens": 28}
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tiny.Result:
    """All tasks through all stages, on a language model that has learned next to nothing."""
    files, result = tmp_path_factory.mktemp("files"), tiny.Result(tmp_path_factory.mktemp("kinds"))
    write_sources(files)
    asked, threads = document(files), torch.get_num_threads()
    for command in tiny.commands(asked):
        result.metrics[command.name] = tiny.run(command, result.folder, asked)
    torch.set_num_threads(threads)
    return result


def test_every_kind_has_a_task():
    assert {block["kind"] for block in BLOCKS.values()} == set(kinds.KINDS) == set(METRICS)
    assert len(kinds.KINDS) == 6


@pytest.mark.parametrize("task", BLOCKS)
def test_the_later_stages_know_the_task_by_its_splits(done, task):
    kind = kinds.load(done[f"tasks/{task}"])
    assert type(kind) is kinds.KINDS[BLOCKS[task]["kind"]]
    assert kind.metric == BLOCKS[task]["metric"]
    found = done.metrics[f"prepare_task@{task}"]
    assert sum(found[split]["rows"] for split in examples.SPLITS) + found["dropped"]["train"]["duplicate"] == (
        60 if task == "answers" else 120
    )


@pytest.mark.parametrize("task", BLOCKS)
def test_the_metrics_are_those_that_may_be_asked_for(done, task):
    for found in done.metrics[f"evaluate@{task}"].values():
        assert set(METRICS[BLOCKS[task]["kind"]]) == set(found["metrics"])
        assert found["score"] == found["metrics"][found["metric"]]
        assert -1 <= found["score_low"] <= found["score_high"] <= 1
        assert found["rows"] == done.metrics[f"prepare_task@{task}"]["test"]["rows"]


@pytest.mark.parametrize("task", BLOCKS)
def test_the_student_comes_close_to_its_teacher(done, task):
    with done[f"plots/finetune/{task}.csv"].open() as file:
        soft = [float(row["soft"]) for row in csv.DictReader(file)]
    assert len(soft) == 5
    assert 0 <= soft[-1] < soft[0] / 2


@pytest.mark.parametrize("task", ["tags", "answers"])
def test_the_dense_model_learns_the_task(done, task):
    assert done.metrics[f"evaluate@{task}"]["dense"]["score"] > 0.6
    assert done.metrics[f"teach_task@{task}"]["validation_score"] > 0.6


@pytest.mark.parametrize("task", BLOCKS)
def test_the_int8_file_has_the_inputs_and_outputs_of_its_kind(done, task):
    graph = onnx.load(done[f"export/{task}/int8.onnx"]).graph
    types = ["token_type_ids"] if "pair" in BLOCKS[task] else []
    assert [i.name for i in graph.input] == ["input_ids", "attention_mask", *types]
    assert [o.name for o in graph.output] == list(kinds.load(done[f"tasks/{task}"]).outputs)
    found = done.metrics[f"export@{task}"]["int8"]
    assert set(found["kernels"]) <= set(audit.INTEGER_KERNELS)
    pooled = kinds.load(done[f"tasks/{task}"]).architecture is AutoModelForSequenceClassification  # others read every token
    assert sum(found["kernels"].values()) == 6 + pooled
    assert done.metrics[f"evaluate@{task}"]["int8"]["sparsity"] >= 0.849


def test_the_second_text_and_its_type_are_read(done):
    running = execution.session(done["export/pairs/int8.onnx"], threads=1, execution="stock")
    split = splits.read_split(done["tasks/pairs/test.arrow"])
    feeds = {name: np.array([split[name][0]], np.int64) for name in ("input_ids", "token_type_ids")}
    feeds["attention_mask"] = np.ones_like(feeds["input_ids"])
    said = running.run(["logits"], feeds)[0]
    feeds["token_type_ids"] = np.zeros_like(feeds["token_type_ids"])
    assert np.abs(running.run(["logits"], feeds)[0] - said).max() > 0


def test_an_answer_is_a_span_of_its_context(done):
    split = splits.read_split(done["tasks/answers/test.arrow"])
    assert max(split["window"]) >= 1
    assert {len(answers) for answers in split["answers"]} == {2}
    contexts = [set(splits.read_split(done[f"tasks/answers/{name}.arrow"])["pair"]) for name in examples.SPLITS]
    assert sum(map(len, contexts)) == len(set.union(*contexts))


def test_the_report_names_each_metric(done):
    rows = json.loads(done["report/report.json"].read_text())
    assert len(rows) == 4 * len(BLOCKS)
    assert {row["task"]: row["metric"] for row in rows} == {task: block["metric"] for task, block in BLOCKS.items()}


def test_the_texts_that_stay_out_of_the_corpus_are_those_of_every_kind(done):
    split = {task: splits.read_split(done[f"tasks/{task}/test.arrow"]) for task in BLOCKS}
    texts = {task: list(splits.read_test_texts(done[f"tasks/{task}"])) for task in BLOCKS}
    for task in BLOCKS:
        columns = ["text", "pair"] if "pair" in BLOCKS[task] else ["text"]
        assert texts[task] == [text for column in columns for text in split[task][column]]


def said(answer: dict[str, Any]) -> str:
    """An answer in the words of `answers.words`."""
    match answer:
        case {"label": label}:
            return label
        case {"labels": labels}:
            return ", ".join(labels)
        case {"number": number}:
            return f"{number:.4g}"
        case {"tags": tags}:
            return " ".join(tag or OUTSIDE for tag in tags)  # null: the word was cut
        case _:
            return answer["answer"]


@pytest.mark.parametrize("name", BLOCKS)
def test_a_file_alone_answers_text_as_it_was_measured(done, name):
    """The oracle is the task's own code on its own split; the file has nothing but a text."""
    kind, split = kinds.load(done[f"tasks/{name}"]), splits.read_split(done[f"tasks/{name}/test.arrow"])
    path = done[f"export/{name}/int8.onnx"]
    session = execution.session(path, threads=1, execution="stock")
    batches = evaluation_batches(split, kind, checkpoint.load_tokenizer(done[f"teach_task/{name}"]), batch_size=1)
    logits = in_split_order([(batch, runtime.logits(session, batch)) for batch in batches])
    examples = [row for row in split if row.get("window", 0) == 0]
    rows = [(row["text"], row["pair"]) if "pair" in row else row["text"] for row in examples]
    packing.pack(path, done[f"export/{name}"] / "int8.packed")
    predictor = Predictor(done[f"export/{name}/int8.packed"], threads=1, execution="stock")
    answered = predictor(rows)
    if name == "vectors":
        assert np.allclose([answer["embedding"] for answer in answered], logits, rtol=0, atol=1e-6)
    else:
        assert [said(answer) for answer in answered] == answers.words(kind, split, logits)
    assert answered[:3] == [predictor([row])[0] for row in rows[:3]], "one alone, and among others"
    if name == "answers":
        assert all(row["pair"][a["begin"] : a["end"]] == a["answer"] for row, a in zip(examples, answered, strict=True))


def test_the_dense_file_answers_as_the_encoder_it_is_made_of(done):
    """The oracle is written as the model cards of sentence encoders have it: mean over tokens, then length 1."""
    folder = done["raw/tiny-bert"]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, attn_implementation="eager")
    split = splits.read_split(done["tasks/vectors/test.arrow"])
    predictor = Predictor(done["export/vectors/dense.onnx"], threads=1)
    for row in split:
        batch = tokenizer([row["text"]], return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            states = model.eval()(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).expand(states.size()).float()
        vector = torch.sum(states * mask, 1) / torch.clamp(mask.sum(1), min=1e-9)
        vector = torch.nn.functional.normalize(vector, p=2, dim=1)[0].numpy()
        (answer,) = predictor([row["text"]])
        assert np.abs(np.array(answer["embedding"]) - vector).max() < 1e-5
        assert np.abs(np.array(row["label"]) - vector).max() < 1e-5
    assert done.metrics["evaluate@vectors"]["dense"]["score"] == pytest.approx(1.0, abs=1e-3)


def test_the_search_of_the_page_finds_texts(done, tmp_path, monkeypatch, capsys):
    (program,) = blocks("python", "docs/embeddings.md")
    (tmp_path / "data/raw/corpus").mkdir(parents=True)
    rows = [("Text", "Category"), ("string", "discrete"), ("meta", "class"), *TABLE]
    (tmp_path / "data/raw/corpus/newsgroups.tab").write_text("".join("\t".join(row) + "\n" for row in rows))
    (tmp_path / "data/export").mkdir()
    shutil.copytree(done["export/vectors"], tmp_path / "data/export/sentences")
    monkeypatch.chdir(tmp_path)
    exec(program, names := {"__name__": "search"})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 6
    similarity = names["index"] @ names["embed"](["is there life after death"])[0]
    best = max(range(len(TABLE)), key=lambda i: similarity[i])
    assert printed[3] == f"{similarity[best]:.2f}  {TABLE[best][1]:22}  {TABLE[best][0]}"


def test_search_is_measured_against_the_dense_encoder(done):
    rows = {row["model"]: row for row in search.measure(done["export/vectors"], TABLE, queries=6, threads=1, rounds=1)}
    assert list(rows) == [*search.SIDES]
    assert (rows["dense fp32"]["recall"], rows["dense fp32"]["Spearman"]) == (1.0, pytest.approx(1.0))
    for row in rows.values():
        assert 0 <= row["recall"] <= 1
        assert 0 < row["nDCG"] <= 1
        assert row["queries a second"] > 0
    assert rows["int8, sparse"]["Spearman"] == pytest.approx(rows["int8, stock"]["Spearman"], abs=0.1)
    assert rows["int8, stock"]["Spearman"] < 1
    assert rows["int8, sparse"]["packed MB"] == rows["int8, stock"]["packed MB"] < rows["dense fp32"]["packed MB"]


def test_a_search_among_too_few_texts_is_refused(tmp_path):
    """Ten nearest of four texts would be a recall of 0.4 for a model that is perfect."""
    with pytest.raises(DataError, match=r"expected 16 texts or more, 6 of them to ask and 10 to find, found 15\."):
        search.measure(tmp_path, TABLE[:15], queries=6, threads=1, rounds=1)


def test_ndcg_is_scikit_learns():
    draw = np.random.default_rng(3)
    groups, asked = draw.integers(0, 4, 40), draw.integers(0, 4, 9)
    index, queries = draw.normal(size=(40, 8)), draw.normal(size=(9, 8))
    near = queries @ (index / np.linalg.norm(index, axis=1, keepdims=True)).T
    found = search.ndcg(queries, index, [f"group {group}" for group in (*asked, *groups)])
    relevant = groups == asked[:, None]
    assert found == pytest.approx(ndcg_score(relevant.astype(int), near, k=search.NEAREST))


@pytest.mark.parametrize("name", BLOCKS)
def test_every_kind_is_served_as_its_signature_says(done, tmp_path, name):
    packaging.save(done[f"export/{name}/int8.onnx"], tmp_path / "model")
    served = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    example = served.input_example
    table = served.predict(example)
    schema = served.metadata.signature.outputs
    assert list(table.columns) == schema.input_names()
    assert table.to_dict("records") == Predictor(done[f"export/{name}/int8.onnx"])(
        [*example.itertuples(index=False, name=None)]
    )


@pytest.mark.parametrize("name", BLOCKS)
def test_answers_are_kept_for_comparisons(done, name):
    kept = json.loads(done[f"answers/{name}.json"].read_text())
    scores = done.metrics[f"evaluate@{name}"]
    assert set(kept["variants"]) == set(scores)
    assert {len(one["replicates"]) for one in kept["variants"].values()} == {50}
    assert kept["rows"] == scores["int8"]["rows"]
    for variant, one in kept["variants"].items():
        assert abs(np.mean(one["replicates"]) - scores[variant]["score"]) < 0.15
        if kept["labels"]:
            right = [int(a == b) for a, b in zip(kept["labels"], one["decisions"], strict=True)]
            assert "".join(map(str, right)) == one["right"]
            assert np.mean(right) == scores[variant]["metrics"]["accuracy"]
    assert (kept["labels"] is None) == (name != "pairs")
    for row in kept["disagreements"]:
        assert row["dense"] != row["int8"] or name in ("number", "vectors")
