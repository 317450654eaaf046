"""New pairs: two similar texts of two rows, a function of the step; no label of theirs reaches a loss."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from pruneonce.batch import pieces
from pruneonce.tasks.answering import QuestionAnswering
from pruneonce.tasks.batches import Batches
from pruneonce.tasks.classification import Classification, MultiLabel, Regression
from pruneonce.tasks.embedding import Embedding
from pruneonce.tasks.examples import Example
from pruneonce.tasks.new_pairs import NewPairs, joined
from pruneonce.tasks.splits import encode_texts
from pruneonce.tasks.tagging import TokenClassification
from pruneonce.training.task import Task, distilled_loss
from tests.conftest import distillation, random_classifier

CLS, SEP = 2, 3
KIND = Classification("accuracy", ["a", "b", "c"])
WORDS = st.lists(st.integers(10, 19), min_size=1, max_size=5)


def row(first, second):
    return [CLS, *first, SEP, *second, SEP]


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=12), st.floats(0, 1), st.integers(0, 99), st.data())
def test_a_share_of_the_rows_gets_second_texts_and_makes_pairs_that_are_new(texts, share, step, data):
    pairs = NewPairs([row(*both) for both in texts], share=share, seed=1, last=SEP)
    batch = np.array(data.draw(st.lists(st.integers(0, len(texts) - 1), unique=True, min_size=1)))
    order, givers = pairs(step, batch)
    assert sorted(order) == sorted(batch)
    assert len(givers) in {math.floor(share * len(batch)), math.ceil(share * len(batch))}
    for one, other in zip(order[len(order) - len(givers) :], givers, strict=True):
        made = (texts[one][0], texts[other][1])
        all_known = sum((texts[one][0], second) in texts or second == texts[one][0] for _, second in texts)
        assert (
            (made not in texts and made[0] != made[1]) or all_known > len(texts) - max(2, len(texts) // 4) or len(texts) == 1
        )
    again = NewPairs([row(*both) for both in texts], share=share, seed=1, last=SEP)(step, batch)
    assert all(map(np.array_equal, (order, givers), again))


def test_steps_and_seeds_draw_anew_and_a_row_of_its_own_where_none_is_similar():
    rows = [row([10 + i], [100 + i]) for i in range(200)]
    drawn = [NewPairs(rows, share=1.0, seed=seed, last=SEP)(step, np.arange(32))[1] for seed in (1, 2) for step in (0, 1)]
    assert len({tuple(givers) for givers in drawn}) == 4
    assert all(len(set(givers)) > 16 for givers in drawn)


def test_half_of_one_row_is_new_in_half_of_the_steps():
    pairs = NewPairs([row([10 + i], [20 + i]) for i in range(9)], share=0.5, seed=1, last=SEP)
    assert 60 < sum(len(pairs(step, np.array([3]))[1]) for step in range(200)) < 140


def test_what_the_rows_say_already_is_not_new():
    """Three second texts for each first one, as in MNLI, and each pair in both orders: the most similar one is known."""
    firsts = [[50 + i, 9, 8] for i in range(60)]
    pairs = [(first, [*first, 200 + 3 * i + k]) for i, first in enumerate(firsts) for k in range(3)]
    pairs += [(second, first) for first, second in pairs]
    order, givers = NewPairs([row(*pair) for pair in pairs], share=1.0, seed=1, last=SEP)(0, np.arange(len(pairs)))
    made = [(pairs[i][0], pairs[j][1]) for i, j in zip(order, givers, strict=True)]
    assert not any(pair in pairs or pair[0] == pair[1] for pair in made)


def test_a_pool_is_of_some_rows_of_many():
    rows = [row([10 + i % 90], [100 + i % 90]) for i in range(5000)]
    _, givers = NewPairs(rows, share=1.0, seed=1, last=SEP)(0, np.arange(5000))
    assert 90 < len(set(givers)) <= 1000


def test_a_second_text_shares_rare_words_with_the_first_one():
    """Texts of 10 topics. A topic has a word of its own, and all texts share another."""
    topics = [i % 10 for i in range(400)]
    rows = [row([9, 100 + topic, 200 + i], [9, 100 + topic, 600 + i]) for i, topic in enumerate(topics)]
    order, givers = NewPairs(rows, share=1.0, seed=1, last=SEP)(0, np.arange(400))
    assert [topics[i] for i in order] == [topics[j] for j in givers]


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ([2, 7, 8, 3, 9, 3], [2, 5, 3, 6, 4, 3], [2, 7, 8, 3, 6, 4, 3]),  # BERT
        ([0, 7, 8, 2, 2, 9, 2], [0, 5, 2, 2, 6, 4, 2], [0, 7, 8, 2, 2, 6, 4, 2]),  # RoBERTa
        ([2, 7, 8, 3, 9, 3], [2, 5, 3, 3], [2, 7, 8, 3, 3]),  # nothing is left of a text
    ],
)
def test_a_new_pair_has_the_form_of_its_tokenizer(one, two, expected):
    assert joined({"input_ids": one, "label": 1}, {"input_ids": two, "label": 0}, last=one[-1])["input_ids"] == expected


@given(st.lists(st.text("abc def", min_size=1).filter(str.strip), min_size=4, max_size=4))
def test_a_new_pair_is_what_the_tokenizer_makes_of_both_texts(tokenizer, texts):
    examples = [Example((texts[0], texts[1]), "a"), Example((texts[2], texts[3]), "a"), Example((texts[0], texts[3]), "a")]
    columns, _ = encode_texts(examples, tokenizer, max_tokens=64)
    one, two, expected = (
        {"input_ids": columns["input_ids"][i], "token_type_ids": columns["token_type_ids"][i]} for i in range(3)
    )
    assert joined(one, two, tokenizer.sep_token_id) == expected


def split(count=12, *, pair=True):
    ids = [row([9 + i] * (1 + i % 3), [9 + i] * (1 + i % 5)) for i in range(count)]
    columns = {"input_ids": ids, "label": [i % 3 for i in range(count)]}
    return Dataset.from_dict(columns | ({"pair": ["-"] * count} if pair else {}))


def test_a_batch_has_its_labelled_rows_first_and_new_ones_of_no_more_tokens(tokenizer):
    options = {"batch_size": 6, "max_tokens": 64, "seed": 3}
    rows = split()
    plain, batches = Batches(rows, KIND, tokenizer, **options), Batches(rows, KIND, tokenizer, **options, new_pairs=0.5)
    own = {tuple(ids) for ids in rows["input_ids"]}
    for step in range(6):
        batch, before = batches(step), plain(step)
        assert batch["labelled"].tolist() == [True] * 3 + [False] * 3
        assert batch["input_ids"].shape[1] <= max(map(len, own))
        texts = [
            tuple(ids[mask.bool()].tolist()) for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        known = [
            tuple(ids[mask.bool()].tolist()) for ids, mask in zip(before["input_ids"], before["attention_mask"], strict=True)
        ]
        assert set(texts[:3]) <= set(known)
        assert all(text not in own for text in texts[3:])
        assert {text[1] for text in texts} == {text[1] for text in known}  # each first text is there, its label with it
        labels = dict(zip((text[1] for text in known), before["labels"].tolist(), strict=True))
        assert [labels[text[1]] for text in texts] == batch["labels"].tolist()


@pytest.mark.parametrize("count", [2, 3])
def test_pieces_of_a_batch_have_as_many_labelled_rows(tokenizer, count):
    batch = Batches(split(), KIND, tokenizer, batch_size=12, max_tokens=64, seed=1, new_pairs=0.5)(0)
    engine = SimpleNamespace(num_processes=1, gradient_accumulation_steps=count)
    assert [int(piece["labelled"].sum()) for piece in pieces(batch, engine)] == [6 // count] * count


@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize(
    ("kind", "new"),
    [
        *((kind, True) for kind in (Classification, Regression, MultiLabel)),
        *((kind, False) for kind in (TokenClassification, QuestionAnswering, Embedding)),
    ],
)
def test_only_pairs_with_one_label_and_only_a_student_get_new_ones(engine, tokenizer, kind, new, pair):
    task = Task(
        SimpleNamespace(new_pairs=kind.new_pairs, targets=("label",)), tokenizer, {"train": split(pair=pair)}, engine
    )
    recipe = SimpleNamespace(batch_size=4, max_tokens=64, new_pairs=0.5, distillation=distillation(soft_weight=1.0))
    assert (task.distilled_batches(recipe, seed=1).new_pairs is not None) == (new and pair)
    assert task.batches(recipe, seed=1).new_pairs is None
    for others in ({"new_pairs": 0.0}, {"distillation": distillation(hard_weight=1.0, soft_weight=0.0)}):
        assert task.distilled_batches(SimpleNamespace(**vars(recipe) | others), seed=1).new_pairs is None


@pytest.mark.parametrize("labelled", [[True, True, False, False], [True] * 4, [False] * 4])
def test_the_hard_loss_is_of_labelled_rows_alone_and_the_soft_loss_of_all(classifier, batch, labelled):
    loss = distilled_loss(KIND, random_classifier(1), distillation(hard_weight=0.5, soft_weight=0.5))
    mask = torch.tensor(labelled)
    found = loss(classifier, batch | {"labelled": mask})
    found["loss"].backward()
    assert torch.equal(found["soft"], loss(classifier, batch)["soft"])
    expected = (
        loss(classifier, {name: tensor[mask] for name, tensor in batch.items()})["hard"]
        if any(labelled)
        else torch.zeros(())
    )
    torch.testing.assert_close(found["hard"].detach(), expected.detach())
    other = torch.where(mask, batch["labels"], (batch["labels"] + 1) % 3)
    assert torch.equal(loss(classifier, batch | {"labelled": mask, "labels": other})["loss"], found["loss"])


def test_one_row_alone_is_a_pair_without_a_label(tokenizer):
    batch = Batches(split(1), KIND, tokenizer, batch_size=4, max_tokens=64, seed=1, new_pairs=1.0)(0)
    assert batch["labelled"].tolist() == [False]
    assert batch["input_ids"].tolist() == split(1)["input_ids"][:]
