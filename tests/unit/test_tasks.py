"""Splits that share no text, batches that show each row once."""

import collections

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruneonce.errors import DataError
from pruneonce.sources import cells
from pruneonce.tasks import classes, examples, splits
from pruneonce.tasks.batches import Batches, collate, evaluation_batches, latency_batch
from pruneonce.tasks.classification import Classification
from pruneonce.tasks.examples import Example
from pruneonce.text import text_key

ABC = Classification("accuracy", ["a", "b", "c"])


def row(text, label):
    return Classification.example(text, label)


ROWS = [row(f"text number {i}", "abc"[i % 3] if i % 2 else "a") for i in range(120)]


def test_clean_counts_what_it_drops():
    rows = [row(*r) for r in [("One", "a"), ("", "a"), ("two", ""), ("one ", "b"), ("three", "a"), ("FOUR", "b")]]
    kept, dropped = examples.clean(rows, exclude=[row("four", "a")])
    assert kept == [row("One", "a"), row("three", "a")]
    assert dropped == examples.Dropped(empty=2, duplicate=1, held_out=1)


def test_clean_keeps_the_duplicates_of_a_given_test_split():
    kept, dropped = examples.drop_empty([row("one", "a"), row("One", "a")])
    assert len(kept) == 2
    assert dropped == examples.Dropped()


def test_no_text_stands_in_two_splits():
    texts = [(r.texts[0], r.label) for r in ROWS * 2]
    noisy = [row(t.upper() if i % 5 == 0 else t.replace(" ", "  "), label) for i, (t, label) in enumerate(texts)]
    test, _ = examples.drop_empty(noisy[:20])
    rest, _ = examples.clean(noisy, exclude=test)
    train, validation = examples.carve(rest, 0.2, seed=1)
    keys = [{text_key(r.texts[0]) for r in split} for split in (train, validation, test)]
    assert [len(k) for k in keys] == [len(train), len(validation), 20]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 120


SOME = st.lists(st.builds(row, st.sampled_from([f"text {i}" for i in range(24)]), st.sampled_from("ab")), max_size=24)
SOURCE = {"train": SOME, "validation": st.none() | SOME, "test": st.none() | SOME, "test-more": SOME}


@given(st.fixed_dictionaries(SOURCE))
def test_no_text_is_learned_from_and_scored_on(source):
    """Whatever splits a source has, and however many texts they share."""
    try:
        made, _ = examples.make_splits(source, validation_ratio=0.2, test_ratio=0.2, seed=1)
    except DataError:  # nothing is left of a split
        return
    texts = {name: {text_key(r.texts[0]) for r in split} for name, split in made.items()}
    tests = texts["test"] | texts["test-more"]
    assert not texts["train"] & (texts["validation"] | tests)
    assert not texts["validation"] & tests


def test_carve_is_stratified_and_loses_no_row():
    rest, carved = examples.carve(ROWS, 0.25, seed=3)
    assert {*rest, *carved} == {*ROWS}
    assert len(rest) + len(carved) == len(ROWS)
    sizes = collections.Counter(r.label for r in ROWS)
    assert collections.Counter(r.label for r in carved) == {k: round(0.25 * n) for k, n in sizes.items()}


def many(sizes):
    """Rows of so many classes: (classes, rows of each)."""
    names = [f"{size} {i}" for count, size in sizes for i in range(count)]
    return [row(f"{name} text {n}", name) for name in names for n in range(int(name.split()[0]))]


@pytest.mark.parametrize(
    ("sizes", "ratio", "classes"),
    [
        ([(2, 100), (60, 4)], 0.1, 26),  # 24 of the sixty have a row in it, where each alone rounds to none
        ([(2, 100), (60, 6)], 0.1, 38),  # and 36 here, where each alone rounds to one
        ([(2, 100), (60, 24)], 0.1, 62),
        ([(2, 100), (60, 25)], 0.1, 62),
        ([(40, 5)], 0.3, 40),
        ([(2, 100), (60, 1)], 0.1, 2),  # a class of one row stays where it can be learned
    ],
)
def test_the_ratio_of_many_small_classes_holds_over_all_rows(sizes, ratio, classes):
    rows = many(sizes)
    rest, carved = examples.carve(rows, ratio, seed=1)
    assert len(carved) == round(ratio * len(rows))
    shown = collections.Counter(r.label for r in carved)
    assert len(shown) == classes
    assert {r.label for r in rest} == {r.label for r in rows}
    if (60, 1) not in sizes:
        assert all(abs(count - ratio * int(name.split()[0])) < 1 for name, count in shown.items())
    assert set(examples.carve(rows[::-1], ratio, seed=1)[1]) == set(carved)
    other = examples.carve(rows, ratio, seed=2)[1]
    assert len({r.label for r in other}) == classes
    assert sizes == [(40, 5)] or set(other) != set(carved)


def test_classes_that_round_well_are_rounded_alone():
    """As of r8, where 541.9 of 5,419 rows are a tenth: 541, for the crude 24.5 rounds to 24; less than a row is missed."""
    sizes = {
        "acq": 1592,
        "crude": 245,
        "earn": 2803,
        "grain": 41,
        "interest": 190,
        "money-fx": 206,
        "ship": 108,
        "trade": 234,
    }
    found = examples.quotas(sizes, 0.1, seed=1)
    assert found == {name: round(0.1 * size) for name, size in sizes.items()}
    assert (sum(found.values()), sum(sizes.values())) == (541, 5419)


def test_train_validation_and_test_all_hold_their_ratio():
    rows = many([(2, 100), (60, 4)])
    given = {"train": rows, "validation": None, "test": None}
    found, _ = examples.make_splits(given, validation_ratio=0.1, test_ratio=0.1, seed=1)
    assert {name: len(split) for name, split in found.items()} == {"train": 352, "validation": 44, "test": 44}
    assert {r.label for r in found["train"]} == {r.label for r in rows}
    assert len(classes.absent(map(Classification.classes_of, found["test"]), {r.label for r in rows})) == 62 - 26


def test_carve_hangs_on_seed_and_text_not_on_order():
    _, carved = examples.carve(ROWS, 0.25, seed=3)
    assert set(examples.carve(ROWS[::-1], 0.25, seed=3)[1]) == set(carved)
    assert set(examples.carve(ROWS, 0.25, seed=4)[1]) != set(carved)
    grown = set(examples.carve([*ROWS, row("a new text", "a")], 0.25, seed=3)[1])
    assert len(grown ^ set(carved)) <= 2


def test_label_names():
    assert classes.label_names("bab", "a", None) == ["a", "b"]
    assert classes.label_names("ba", "", ["b", "a", "c"]) == ["b", "a", "c"]


def test_a_label_that_training_never_shows_is_an_error():
    with pytest.raises(DataError, match=r"found also \['c'\]"):
        classes.label_names("ba", "c", None)
    with pytest.raises(DataError, match=r"found also \['a'\]"):
        classes.label_names("ba", "", ["b", "c"])


def test_a_class_that_is_named_twice_is_an_error():
    """Found after all training, by whoever answers with the file, it would cost hours."""
    with pytest.raises(DataError, match=r"expected every class once in the task's `labels`, found \['a'\] more than once"):
        classes.label_names("ba", "", ["b", "a", "a"])


def test_one_class_is_an_error():
    with pytest.raises(DataError, match="two classes or more"):
        classes.label_names("a", "", None)


def test_a_split_round_trips_and_counts_what_it_cut(tmp_path, tokenizer):
    rows = [row("a b c", "y"), row("a b c d e f", "x"), row("a b c d e f g h", "x")]
    kind = Classification("accuracy", ["x", "y"])
    cut = splits.write_split(tmp_path / "train.arrow", rows, kind, tokenizer, max_tokens=8)
    split = splits.read_split(tmp_path / "train.arrow")
    assert split["text"][:] == [r.texts[0] for r in rows]
    assert split["label"][:] == [1, 0, 0]
    letters = tokenizer.convert_tokens_to_ids(list("abcdef"))
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert split["input_ids"][:] == [[first, *letters[:3], last], [first, *letters, last], [first, *letters, last]]
    assert cut == 1  # the second text has exactly 8 tokens


@pytest.mark.parametrize("rows", [999, 1000, 1001, 2001])
def test_a_long_split_keeps_every_row(tmp_path, tokenizer, rows):
    """They are written a thousand at a time."""
    splits.write_split(tmp_path / "s.arrow", [row(f"a {i}", "a") for i in range(rows)], ABC, tokenizer, max_tokens=8)
    assert splits.read_split(tmp_path / "s.arrow")["text"][:] == [f"a {i}" for i in range(rows)]


def test_collate_pads_and_keeps_the_last_token():
    rows = [{"input_ids": [2, 7, 3], "label": 1}, {"input_ids": [2, 7, 8, 9, 10, 3], "label": 0}]
    batch = collate(rows, ABC, pad=0, max_tokens=4, last=3)
    assert batch["input_ids"].tolist() == [[2, 7, 3, 0], [2, 7, 8, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [1, 0]
    assert {v.dtype for v in batch.values()} == {torch.int64}


@pytest.fixture
def split(tmp_path, tokenizer):
    """103 texts of 1 to 30 words; the label of each is told by its length."""
    rows = [row(" ".join(["apple"] * (1 + i * 7 % 30)), "abc"[(1 + i * 7 % 30) % 3]) for i in range(103)]
    splits.write_split(tmp_path / "s.arrow", rows, ABC, tokenizer, max_tokens=64)
    return splits.read_split(tmp_path / "s.arrow")


@pytest.mark.parametrize(("epochs", "steps"), [(1, 13), (2, 26), (0.5, 6), (1.5, 20), (0.001, 1), (0, 0)])
def test_an_epoch_may_be_a_fraction(split, tokenizer, epochs, steps):
    assert Batches(split, ABC, tokenizer, batch_size=8, max_tokens=64, seed=1).steps(epochs) == steps


def test_batches_show_each_row_once_an_epoch(split, tokenizer):
    batches = Batches(split, ABC, tokenizer, batch_size=8, max_tokens=64, seed=1)
    assert len(batches) == 13
    for epoch in range(3):
        rows = np.concatenate([batches.rows(13 * epoch + i) for i in range(13)])
        assert sorted(rows) == list(range(103))


def test_batches_are_a_function_of_the_step(split, tokenizer):
    one, two = (Batches(split, ABC, tokenizer, batch_size=8, max_tokens=64, seed=1) for _ in range(2))
    wanted = [one(step) for step in range(30)]
    for step in (29, 3, 14, 0):
        assert all(torch.equal(two(step)[k], v) for k, v in wanted[step].items())
    epochs = [np.concatenate([one.rows(13 * e + i) for i in range(13)]).tolist() for e in range(2)]
    assert epochs[0] != epochs[1]


def test_another_seed_is_another_order(split, tokenizer):
    one, two = (Batches(split, ABC, tokenizer, batch_size=8, max_tokens=64, seed=seed) for seed in (1, 2))
    assert any(one.rows(step).tolist() != two.rows(step).tolist() for step in range(13))


def test_an_epoch_is_in_no_order_of_length(split, tokenizer):
    """Rows of one length share a batch, but short batches do not all come first."""
    batches = Batches(split, ABC, tokenizer, batch_size=8, max_tokens=64, seed=1)
    means = [float(batches.lengths[batches.rows(step)].mean()) for step in range(13)]
    assert means not in (sorted(means), sorted(means, reverse=True))


def test_batches_carry_the_label_of_their_text(split, tokenizer):
    batches = Batches(split, ABC, tokenizer, batch_size=8, max_tokens=64, seed=1)
    for step in range(13):
        batch = batches(step)
        assert torch.equal(batch["labels"], (batch["attention_mask"].sum(1) - 2) % 3)


def test_little_is_padding(split, tokenizer):
    batches = [Batches(split, ABC, tokenizer, batch_size=8, max_tokens=64, seed=1)(i) for i in range(13)]
    real = sum(int(b["attention_mask"].sum()) for b in batches)
    assert real / sum(b["attention_mask"].numel() for b in batches) > 0.85


def test_training_batches_are_cut_and_end_in_the_last_token(split, tokenizer):
    batches = Batches(split, ABC, tokenizer, batch_size=103, max_tokens=10, seed=1)
    batch = batches(0)
    assert batch["input_ids"].shape == (103, 10)
    ends = batch["attention_mask"].sum(1) - 1
    assert set(batch["input_ids"].gather(1, ends[:, None]).flatten().tolist()) == {tokenizer.sep_token_id}


def test_evaluation_shows_every_row_once_uncut(split, tokenizer):
    batches = list(evaluation_batches(split, ABC, tokenizer, batch_size=10))
    assert [len(b["labels"]) for b in batches] == [10] * 10 + [3]
    lengths = [n for b in batches for n in b["attention_mask"].sum(1).tolist()]
    assert lengths == sorted(len(i) for i in split["input_ids"][:])
    assert all(torch.equal(b["labels"], (b["attention_mask"].sum(1) - 2) % 3) for b in batches)


@pytest.mark.parametrize("tokens", [4, 32, 6000])
def test_a_latency_batch_has_exactly_the_tokens(split, tokenizer, tokens):
    batch = latency_batch(split, tokenizer, tokens=tokens)
    assert batch["input_ids"].shape == (1, tokens)
    assert batch["attention_mask"].sum() == tokens
    assert batch["input_ids"][0, [0, -1]].tolist() == [tokenizer.cls_token_id, tokenizer.sep_token_id]
    assert (batch["input_ids"][0, 1:-1] > 4).all()


def test_a_large_group_does_not_turn_the_ratio_round():
    """30 contexts, one of 200 questions: of it all or none is carved, and the ratio is one of questions."""
    rows = [Example((f"q{i} {n}",), "a", group=f"c{i}") for i in range(30) for n in range(200 if i == 0 else 1)]
    for seed in range(20):
        rest, carved = examples.carve(rows, 0.1, seed=seed)
        assert len(carved) == 23
        assert len(rest) == 206
        assert not {row.group for row in rest} & {row.group for row in carved}


def test_where_no_group_fits_the_smallest_is_carved():
    rows = [Example((f"q{i} {n}",), "a", group=f"c{i}") for i in range(3) for n in range(10 + i)]
    rest, carved = examples.carve(rows, 0.1, seed=1)
    assert {row.group for row in carved} == {"c0"}
    assert len(rest) == 23


@pytest.mark.parametrize("cell", ["{'x'}", "set()", "frozenset({'x'})", "array(['x'])", "b'x'", "a, {'x'}"])
def test_what_python_prints_of_a_set_is_no_label(cell):
    with pytest.raises(DataError, match="expected labels with commas between them"):
        cells.split_labels(cell)


def test_a_task_without_test_splits_is_named(tmp_path):
    with pytest.raises(DataError, match=r"expected the test split of task 'r8' in .*r8, found none\. Run `prepare_task`"):
        list(splits.read_test_texts(tmp_path / "r8"))
