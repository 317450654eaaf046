"""Too little to compute with: an error before the first step, never after the last."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset

from pipeline.history import Log
from pipeline.params.document import parse
from pruneonce.errors import DataError, ModelError
from pruneonce.language import blocks, corpus, masked_lm
from pruneonce.models import checkpoint
from pruneonce.tasks import classification, embedding, kinds
from pruneonce.tasks.examples import Example
from pruneonce.tasks.splits import write_split
from pruneonce.training.task import Task, check_scorable
from stages import prepare_teacher, sparsify
from tests.conftest import TINY, Settings, random_masked_lm
from tests.integration import tiny


@pytest.fixture
def tokens(tmp_path):
    """1600 blocks to train on, and one that is held out: at a probability of 0.001 none of its 16 tokens is masked."""
    draw, folder = torch.Generator().manual_seed(0), tmp_path / "tokens"
    folder.mkdir()
    for part, count in (("train", 1600), ("held_out", 1)):
        rows = torch.randint(5, 162, (count, 16), generator=draw).numpy()
        blocks.write_blocks(folder / f"{part}.arrow", [rows], block_tokens=16)
    return folder


def run(name: str, tokens, tmp_path, steps: list[int], **changes):
    """Run prepare_teacher or sparsify on a tiny BERT; the steps that were taken go to `steps`."""
    AcceleratorState._reset_state(reset_partial_state=True)
    asked = parse(tiny.document(), "tiny")
    section = getattr(asked, name).model_copy(update={"masking_probability": 0.001, **changes})
    base = tmp_path / "base"
    checkpoint.save(random_masked_lm(), checkpoint.load_tokenizer(TINY / "model"), base)
    stage = {"prepare_teacher": partial(prepare_teacher.run, base), "sparsify": partial(sparsify.run, base)}[name]
    log = Log(tmp_path / "scratch", lambda step, metrics: steps.append(step))
    return stage(tokens, tmp_path / "model", tmp_path / "history.csv", common=asked.common, log=log, **{name: section})


@pytest.mark.parametrize("name", ["prepare_teacher", "sparsify"])
def test_held_out_blocks_without_a_masked_token_are_an_error_before_the_training(tokens, tmp_path, name):
    steps: list[int] = []
    message = r"expected a masked token in 1 batches of held-out blocks, found none: 1 blocks and masking_probability 0\.001"
    with pytest.raises(DataError, match=message):
        run(name, tokens, tmp_path, steps)
    assert steps == []
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["prepare_teacher", "sparsify"])
def test_so_are_training_blocks(tokens, tmp_path, name):
    steps: list[int] = []
    with pytest.raises(DataError, match=r"expected a masked token in .* batches of train blocks, found none: 1600 blocks"):
        run(name, tokens, tmp_path, steps, masking_probability=1e-9)
    assert steps == []


@pytest.mark.parametrize("name", ["prepare_teacher", "sparsify"])
def test_one_masked_token_is_enough(tokens, tmp_path, name):
    steps: list[int] = []
    metrics = run(name, tokens, tmp_path, steps, masking_probability=0.15)
    assert len(steps) == getattr(parse(tiny.document(), "tiny"), name).steps
    assert metrics["held_out_loss"] > 0


def test_the_metric_itself_names_what_is_too_little(tokens, engine):
    blocks = corpus.read_blocks(tokens / "held_out.arrow")
    batches = corpus.MaskedBlocks(blocks, checkpoint.load_tokenizer(TINY / "model"), batch_size=4, probability=1e-9, seed=1)
    with pytest.raises(DataError, match="Raise masking_probability"):
        masked_lm.held_out(random_masked_lm(), batches, engine=engine, limit=3)


def test_blocks_of_special_tokens_alone_have_nothing_to_mask(tmp_path):
    blocks.write_blocks(tmp_path / "t.arrow", [np.array([[2] + [1] * 14 + [3]] * 8)], block_tokens=16)
    rows = corpus.read_blocks(tmp_path / "t.arrow")
    batches = corpus.MaskedBlocks(rows, checkpoint.load_tokenizer(TINY / "model"), batch_size=4, probability=0.9, seed=1)
    with pytest.raises(DataError, match="expected a masked token in 2 batches of train blocks"):
        masked_lm.check_masked(batches, limit=100, part="train")


@pytest.mark.parametrize(
    ("metric", "labels", "told"),
    [
        ("mcc", [1, 1, 1], True),
        ("mcc", [1, 0, 1], False),
        ("f1", [0, 0, 0], True),
        ("f1", [1, 1, 1], False),
        ("f1", [[3, 4], [0, 0]], False),  # where answers begin and end
        ("accuracy", [1, 1, 1], False),
        ("macro_f1", [0, 0, 0], False),
        ("pearson", [0.5, 0.5], True),
        ("spearman", [0.5, 0.6], False),
        ("micro_f1", [[], []], True),
        ("macro_f1", [[], [1]], False),
        ("entity_f1", [[1, 1], [1]], True),
        ("entity_f1", [[1, 1], [1, 2]], False),
    ],
)
def test_labels_on_which_a_metric_is_0_for_every_model(metric, labels, told):
    split, kind = Dataset.from_dict({"label": labels}), SimpleNamespace(metric=metric, classes=["B-PER", "O", "I-PER"])
    if not told:
        check_scorable(kind, split, "validation")
        return
    with pytest.raises(
        DataError, match=rf"expected validation rows .* on which {metric} is the same for every model: .* Raise prep"
    ):
        check_scorable(kind, split, "validation")


@pytest.mark.parametrize("metric", embedding.RETRIEVAL)
@pytest.mark.parametrize(
    ("groups", "sides", "told"),
    [
        (["a", "b", "c"], [0, 0, 0], True),  # no class has two texts: a small share of many classes
        (["a", "b", "a"], [0, 0, 0], False),
        ([None, None, ""], [0, 0, 0], True),
        (["a", "a", "b", "b"], [1, 2, 1, 2], False),  # pairs
        (["a", "a"], [1, 1], True),  # nothing answers
        (["a", "a"], [2, 2], True),  # nothing asks
        (["a", "a", "a"], [0, 0, 0], True),  # nothing else is there
        (["a", "a", "a", "a"], [1, 2, 1, 2], True),
    ],
)
def test_texts_that_have_nothing_to_find(metric, groups, sides, told):
    split = Dataset.from_dict({"label": [[1.0, 0.0]] * len(groups), "group": groups, "side": sides})
    kind, draw, found = embedding.Embedding(metric, "mean", normalize=True, max_tokens=8), np.random.default_rng(1), set()
    for _ in range(20):
        scorers = kind.scorers(split, [*draw.normal(size=(len(groups), 2))])[1]
        found.add(scorers[metric](np.arange(len(groups))) if metric in scorers else None)
    if told:
        assert len(found) == 1
    if not told:
        check_scorable(kind, split, "test")
        return
    with pytest.raises(DataError, match=rf"expected test rows .* on which {metric} is the same for every model"):
        check_scorable(kind, split, "test")


@pytest.fixture
def splits(tmp_path, tokenizer):
    """A task with metric mcc whose validation rows are of one class."""
    labels = {"train": ["a", "b"] * 4, "validation": ["a"] * 3, "test": ["a", "b"]}
    rows = {name: [Example((f"the people {i}",), label) for i, label in enumerate(found)] for name, found in labels.items()}
    kind = classification.Classification.from_rows(Settings("mcc"), *rows.values())
    folder = tmp_path / "splits"
    folder.mkdir()
    kinds.save(kind, folder)
    for name, examples in rows.items():
        write_split(folder / f"{name}.arrow", examples, kind, tokenizer, max_tokens=16)
    return folder


def test_a_task_whose_validation_says_nothing_is_an_error_when_it_is_read(splits, engine):
    with pytest.raises(
        DataError, match=r"expected validation rows that tell models apart, found 3 on which mcc is the same"
    ):
        Task.read(splits, TINY / "model", engine)


def test_a_model_with_fewer_rows_than_its_tasks_tokenizer_has_ids(splits, engine, tokenizer, tmp_path):
    """The student's folder is not the one that the tokenizer came from."""
    kind = classification.Classification("accuracy", ["a", "b"])
    task = Task(kind, tokenizer, {}, engine)
    small = random_masked_lm()
    small.resize_token_embeddings(100)
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(ModelError, match=r"expected token ids below 100, the embeddings of the model in .*small, found 161"):
        task.model(tmp_path / "small", attention="eager", dropout=0.0)
