"""Sentence embeddings as a task: the loss by its formula, the measures against SciPy and scikit-learn, rows, labels."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.stats import spearmanr
from sklearn.metrics import ndcg_score
from sklearn.neighbors import KNeighborsClassifier

from pruneonce.errors import DataError
from pruneonce.tasks import embedding, examples
from pruneonce.tasks.embedding import ANSWERS, ASKS, Embedding, embedding_loss
from tests.conftest import Settings

KIND = Embedding("spearman", "mean", True, 10)


def split(vectors, groups=None, sides=None):
    count = len(vectors)
    columns = {"label": np.asarray(vectors).tolist(), "group": groups or [None] * count, "side": sides or [0] * count}
    return Dataset.from_dict(columns)


def measure(found, wanted=None, groups=None, sides=None):
    total, scorers = KIND.scorers(split(found if wanted is None else wanted, groups, sides), [*np.asarray(found)])
    assert total == len(found)
    return {name: scorer(np.arange(total)) for name, scorer in scorers.items()}


def test_the_loss_is_its_formula():
    draw = torch.Generator().manual_seed(1)
    s, t = torch.randn(5, 7, generator=draw), torch.randn(5, 7, generator=draw)
    cos = torch.nn.functional.cosine_similarity
    wanted = sum(1 - cos(s[i], t[i], dim=0) for i in range(5)) / 5
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    wanted += sum((cos(s[i], s[j], dim=0) - cos(t[i], t[j], dim=0)) ** 2 for i, j in pairs) / len(pairs)
    assert float(embedding_loss(s, t)) == pytest.approx(float(wanted), rel=1e-5)
    assert float(embedding_loss(s[:1], t[:1])) == pytest.approx(float(1 - cos(s[0], t[0], dim=0)), rel=1e-5)


def test_the_loss_reads_directions_alone_and_never_moves_the_teacher():
    s, t = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    assert float(embedding_loss(3 * t.detach(), t)) == pytest.approx(0, abs=1e-6)
    embedding_loss(s, t).backward()
    assert t.grad is None
    assert s.grad is not None
    assert s.grad.abs().sum() > 0


def test_spearman_is_scipys_where_every_pair_is_compared():
    draw = np.random.default_rng(2)
    dense = draw.normal(size=(9, 5))  # fewer texts than PARTNERS: all pairs, both ways
    found = dense + 0.5 * draw.normal(size=(9, 5))
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (dense, found)]
    pairs = [(i, j) for i in range(9) for j in range(9) if i != j]
    wanted = spearmanr(*[[v[i] @ v[j] for i, j in pairs] for v in unit]).statistic
    assert measure(found, dense)["spearman"] == pytest.approx(wanted, abs=1e-3)
    assert measure(dense, dense)["spearman"] == pytest.approx(1.0)
    drawn = np.array([0, 0, 1, 2, 3, 4, 4, 5, 6, 7])  # with replacement: a row is no partner of itself
    scorer = KIND.scorers(split(dense), list(found))[1]["spearman"]
    pairs = [(i, j) for a, i in enumerate(drawn) for b, j in enumerate(drawn) if a != b and i != j]
    wanted = spearmanr(*[[v[i] @ v[j] for i, j in pairs] for v in unit]).statistic
    assert scorer(drawn) == pytest.approx(wanted, abs=1e-3)


def test_two_texts_or_equal_vectors_have_no_order():
    assert measure(np.ones((5, 3)))["spearman"] == 0.0
    assert measure(np.eye(3)[:1])["spearman"] == 0.0


def test_retrieval_of_classes_is_scikit_learns():
    draw = np.random.default_rng(3)
    groups = [f"c{i % 3}" for i in range(30)]
    centres = draw.normal(size=(3, 6))
    found = np.stack([centres[i % 3] + draw.normal(size=6) for i in range(30)])
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    ndcg, recall, near = [], [], []
    for i in range(30):
        rest = [j for j in range(30) if j != i]
        relevant = np.array([groups[j] == groups[i] for j in rest])
        likeness = unit[rest] @ unit[i]
        ndcg.append(ndcg_score([relevant], [likeness], k=10))
        recall.append(relevant[np.argsort(-likeness)[:10]].sum() / relevant.sum())
        model = KNeighborsClassifier(1, metric="cosine").fit(unit[rest], [groups[j] for j in rest])
        near.append(model.predict(unit[i : i + 1])[0] == groups[i])
    got = measure(found, groups=groups)
    assert got["ndcg"] == pytest.approx(np.mean(ndcg))
    assert got["recall"] == pytest.approx(np.mean(recall))
    assert got["neighbour"] == pytest.approx(np.mean(near))


def test_of_a_pair_the_first_text_asks_and_second_texts_answer():
    """Three questions; the answer of the first is nearest, that of the second is second, that of the third is last."""
    found = np.array([[1, 0], [1, 0.1], [0, 1], [0.4, 1], [0.5, 1], [-1, -1]], float)
    groups, sides = ["a", "a", "b", "b", "c", "c"], [ASKS, ANSWERS] * 3
    got = measure(found, groups=groups, sides=sides)
    assert got["neighbour"] == pytest.approx(2 / 3)
    assert got["recall"] == 1.0
    assert got["ndcg"] == pytest.approx((1 + 1 + 0.5) / 3)


def test_the_copies_of_an_answer_are_one():
    """Thirty questions of one passage: perfect vectors find it, once."""
    read = Embedding.reader(Settings(pair="other"))
    rows = [read(f"question {i}", "The  passage" if i % 2 else "the passage") for i in range(30)] + [read("why?", "another")]
    table = split([[1, 0]] * 60 + [[0, 1]] * 2, [row.group for row in rows for _ in row.texts], [ASKS, ANSWERS] * 31)
    table = table.add_column("text", [text for row in rows for text in row.texts])
    total, scorers = KIND.scorers(table, table["label"][:])
    assert {name: score(np.arange(total)) for name, score in scorers.items()} == dict.fromkeys(scorers, 1.0)
    assert list(scorers) == ["spearman", *embedding.RETRIEVAL]


def test_a_vector_that_is_no_number_is_found_last():
    """Of a training that diverged the score is low; it is no error."""
    found = np.array([[1, 0], [0.9, 0.1], *[[0, 1]] * 12])
    found[0] = np.nan
    got = measure(found, wanted=np.ones((14, 2)), groups=["a", "a", *["b"] * 12])
    assert got["neighbour"] < 1
    assert 0 < got["ndcg"] < 1


def test_no_copy_of_an_answer_is_in_another_split():
    read = Embedding.reader(Settings(pair="other"))
    rows = [read(f"question {i}", f"passage {i % 10}") for i in range(200)]
    made, _ = examples.make_splits(
        {"train": rows, "validation": None, "test": None}, validation_ratio=0.1, test_ratio=0.1, seed=1
    )
    assert all(made.values())
    assert examples.shared_second_texts(made["train"], made["validation"], made["test"]) == 0


@pytest.mark.parametrize("count", [2, 10, 11, 40, 600])
def test_the_nearest_texts_are_those_of_a_whole_sort(count):
    """Of equal ones the first; in blocks of texts."""
    draw = np.random.default_rng(count)
    for _ in range(20):
        alike = draw.integers(0, 6, count).astype(np.float32)
        wanted = np.argsort(-alike, kind="stable")[: embedding.NEAREST]
        np.testing.assert_array_equal(embedding._nearest(alike), wanted)
    vectors, groups = draw.normal(size=(count, 5)), draw.integers(0, 7, count).astype(str)
    unit = embedding._directions(vectors)
    got = embedding._retrieval(unit, groups, np.zeros(count, int))["neighbour"]
    for i in range(count):
        others = [j for j in range(count) if j != i]
        best = max(others, key=lambda j: float(unit[i].astype(float) @ unit[j].astype(float)))
        if (groups[others] == groups[i]).any():
            assert got[i] == (groups[best] == groups[i])
        else:
            assert np.isnan(got[i])


def test_texts_without_a_group_ask_nothing():
    found = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 1]], float)
    got = measure(found, groups=["a", "a", None, None])
    assert got["neighbour"] == 1.0
    assert "ndcg" not in measure(found)


def test_rows_are_texts_texts_of_a_class_or_pairs():
    read = Embedding.reader(Settings(pair=None))
    assert read("a b").texts == ("a b",)
    assert read("a b", "x").stratum == "x"
    pair = Embedding.reader(Settings(pair="other"))("a b", "c d")
    assert pair.texts == ("a b", "c d")
    assert pair.group != Embedding.reader(Settings(pair="other"))("a b", "c e").group


def test_retrieval_needs_something_to_find():
    rows = [Embedding.reader(Settings(pair=None))("a b")]
    with pytest.raises(DataError, match="expected a class or a second text in every row for metric ndcg"):
        Embedding.from_rows(Settings(metric="ndcg"), rows, rows)
    assert Embedding.from_rows(Settings(metric="spearman"), rows, rows).metric == "spearman"


def test_a_vector_of_zeros_is_like_nothing():
    assert embedding.cosine([0.0, 0.0], [1.0, 0.0]) == 0.0
    assert embedding.cosine([2.0, 0.0], [5.0, 0.0]) == 1.0
