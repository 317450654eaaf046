"""Kinds that decide on a whole text: rows, targets, losses against their definitions, metrics worked by hand."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.special import expit, xlogy

from pruneonce.errors import DataError
from pruneonce.tasks import batches, examples, scores, splits
from pruneonce.tasks.classification import Classification, MultiLabel, Regression
from tests.conftest import Settings

CLASSES = Classification("accuracy", ["a", "b", "c"])
LABELS = MultiLabel("micro_f1", ["a", "b", "c"])
NUMBER = Regression("pearson")


def logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def all_scores(kind, label, said):
    total, scorers = kind.scorers(Dataset.from_dict({"label": label}), [np.array(row) for row in said])
    return total, {name: scorer(np.arange(total)) for name, scorer in scorers.items()}


class TestClassification:
    def test_a_row_out_of_cells(self):
        assert Classification.example(" x ", 3) == examples.Example(("x",), "3", stratum="3")
        assert Classification.example("x", "y", None).label is None
        assert Classification.example("x", "y", "n").texts == ("x", "y")

    def test_hard_loss_is_cross_entropy(self):
        found = CLASSES.hard(logits(4, 3), {"labels": torch.tensor([0, 2, 1, 1])})
        p = np.exp(logits(4, 3).double().numpy())
        p /= p.sum(-1, keepdims=True)
        assert float(found) == pytest.approx(-np.log(p[range(4), [0, 2, 1, 1]]).mean(), rel=1e-6)

    def test_metrics_by_hand(self):
        """Right 0 0 0 1 1, said 0 0 1 1 0: of class 1 one right, one too many, one missed."""
        kind = Classification("f1", ["no", "yes"])
        total, found = all_scores(kind, [0, 0, 0, 1, 1], [[1, 0], [1, 0], [0, 1], [0, 1], [1, 0]])
        assert total == 5
        expected = {"accuracy": 3 / 5, "f1": 1 / 2, "macro_f1": (2 / 3 + 1 / 2) / 2, "mcc": 1 / 6}  # (2·1 - 1·1) / 6
        assert found == pytest.approx(expected)

    def test_three_classes_have_no_f1_of_the_second_one(self):
        assert set(all_scores(CLASSES, [0, 1, 2], np.eye(3))[1]) == {"accuracy", "macro_f1", "mcc"}
        rows = [Classification.example("x", label) for label in "abc"]
        with pytest.raises(DataError, match="expected two classes for metric f1, found 3"):
            Classification.from_rows(Settings(metric="f1"), rows, [])

    def test_one_class_said_is_no_warning(self):
        kind = Classification("mcc", ["no", "yes"])
        assert all_scores(kind, [0, 0], [[1, 0], [1, 0]])[1]["mcc"] == 0

    def test_the_second_class_is_the_positive_one_in_the_order_given(self):
        rows = [Classification.example("x", label) for label in ("not_equivalent", "equivalent")]
        wanted = Settings(metric="f1", labels=["not_equivalent", "equivalent"])
        assert Classification.from_rows(wanted, rows, []).classes == ["not_equivalent", "equivalent"]


class TestRegression:
    def test_a_label_that_is_no_number(self):
        assert Regression.example("x", "y", " 2.5 ").label == 2.5
        assert Regression.example("x", None).label is None
        with pytest.raises(DataError, match="expected a number as label, found 'much'"):
            Regression.example("x", "much")

    @pytest.mark.parametrize(("values", "message"), [([1.0, float("inf")], "finite"), ([-1.0, -1.0], "kept secret")])
    def test_labels_that_cannot_be_learned(self, values, message):
        rows = [Regression.example("x", value) for value in values]
        with pytest.raises(DataError, match=message):
            Regression.from_rows(Settings(metric="pearson"), [Regression.example("x", 1), Regression.example("y", 2)], rows)

    def test_losses_are_squared_errors(self):
        student, teacher, right = logits(4, 1), logits(4, 1, seed=1), torch.tensor([1.0, 2.0, 3.0, 4.0])
        s, t = student.double().squeeze(), teacher.double().squeeze()
        assert float(NUMBER.hard(student, {"labels": right})) == pytest.approx(float(((s - right) ** 2).mean()), rel=1e-6)
        found = [float(NUMBER.soft(student, teacher, {}, temperature)) for temperature in (1.0, 5.0)]
        assert found == pytest.approx([float(((s - t) ** 2).mean())] * 2, rel=1e-6)

    def test_correlations_by_hand(self):
        """1 2 3 against 1 2 6: covariance 5, variances 2 and 14; the order is the same."""
        _, found = all_scores(NUMBER, [1.0, 2.0, 3.0], [[1.0], [2.0], [6.0]])
        assert found == pytest.approx({"pearson": 5 / np.sqrt(2 * 14), "spearman": 1.0})

    def test_a_constant_answer_has_no_correlation(self):
        assert all_scores(NUMBER, [1.0, 2.0], [[3.0], [3.0]])[1] == {"pearson": 0.0, "spearman": 0.0}


class TestMultiLabel:
    def test_labels_are_lists_or_text_with_commas(self):
        assert MultiLabel.example("x", "b, a,,b").label == ("a", "b")
        assert MultiLabel.example("x", ["b", 1]).label == ("1", "b")

    def test_a_row_that_says_nothing_of_its_labels_is_dropped(self):
        """An empty list says that no label applies; None and NaN are not answered yet."""
        rows = [MultiLabel.example("x", label) for label in (["b"], [], "", "[]", None, math.nan)]
        kept, dropped = examples.drop_empty(rows)
        assert ([row.label for row in kept], dropped.empty) == ([("b",), (), (), ()], 2)

    def test_targets_are_ones_and_zeros(self):
        found = LABELS.labels([{"label": [0, 2]}, {"label": []}], 7)
        assert found.tolist() == [[1, 0, 1], [0, 0, 0]]
        assert LABELS.target(("a", "c")) == [0, 2]

    def test_losses_against_their_definitions(self):
        student, teacher = logits(5, 3), logits(5, 3, seed=1)
        s, t, temperature = student.double().numpy(), teacher.double().numpy(), 2.0
        right = torch.tensor([[1.0, 0.0, 1.0]]).repeat(5, 1)
        hard = -(right.numpy() * np.log(expit(s)) + (1 - right.numpy()) * np.log(expit(-s))).mean()
        assert float(LABELS.hard(student, {"labels": right})) == pytest.approx(hard, rel=1e-6)
        p, q = expit(t / temperature), expit(s / temperature)
        kl = xlogy(p, p / q) + xlogy(1 - p, (1 - p) / (1 - q))
        assert float(LABELS.soft(student, teacher, {}, temperature)) == pytest.approx(temperature**2 * kl.mean(), rel=1e-5)

    def test_metrics_by_hand(self):
        """a: 1 right, 1 expected, 2 said; b: 1 right, 2 expected, 1 said; c: never, so it has none. 1 and 3 are right."""
        _, found = all_scores(LABELS, [[0, 1], [1], []], [[1, 1, -1], [1, -1, -1], [-1, -1, -1]])
        assert found == pytest.approx({"accuracy": 2 / 3, "micro_f1": 4 / 6, "macro_f1": (2 / 3 + 2 / 3) / 2})
        assert all_scores(LABELS, [[], []], -np.ones((2, 3)))[1] == {"accuracy": 1.0, "micro_f1": 0.0, "macro_f1": 0.0}

    def test_the_interval_of_rare_labels_holds_the_score(self):
        """A label that no drawn row has is no label that was missed."""
        kind = MultiLabel("macro_f1", [f"label {i:02}" for i in range(40)])
        rows = [[i % 40] for i in range(80)]
        _, scorers = kind.scorers(Dataset.from_dict({"label": rows}), [np.eye(40)[i] * 2 - 1 for (i,) in rows])
        found = scores.summary(scorers, "macro_f1", 80, resamples=50, seed=1)
        assert (found["score_low"], found["score"], found["score_high"]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("kind", [CLASSES, LABELS], ids=["classes", "labels"])
def test_no_gradient_reaches_the_teacher(kind):
    student, teacher = logits(4, 3).requires_grad_(), logits(4, 3, seed=1).requires_grad_()
    kind.soft(student, teacher, {}, 2.0).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_decisions():
    assert CLASSES.decisions(np.array([[1, 3, 2], [5, 1, 1]]), {}).tolist() == [1, 0]
    assert LABELS.decisions(np.array([[1.0, -1.0, 2.0]]), {}).tolist() == [True, False, True]
    assert NUMBER.decisions(np.array([[1.0], [2.0]]), {}).tolist() == [0, 0]


class TestPairs:
    ROWS = (("a b c", "d e", "x"), ("a b c d e f g h", "i", "y"), ("a", "b c d e f g h i", "x"))

    def split(self, tmp_path, tokenizer, max_tokens):
        rows = [Classification.example(*row) for row in self.ROWS]
        kind = Classification("accuracy", ["x", "y"])
        cut = splits.write_split(tmp_path / "s.arrow", rows, kind, tokenizer, max_tokens=max_tokens)
        return splits.read_split(tmp_path / "s.arrow"), kind, cut

    def test_the_second_text_has_the_second_type(self, tmp_path, tokenizer):
        split, _, cut = self.split(tmp_path, tokenizer, 32)
        assert (split.column_names, cut) == (["text", "pair", "label", "input_ids", "token_type_ids"], 0)
        assert split["token_type_ids"][0] == [0] * 5 + [1] * 3
        assert tokenizer.convert_ids_to_tokens(split["input_ids"][0]) == ["[CLS]", "a", "b", "c", "[SEP]", "d", "e", "[SEP]"]

    def test_the_longer_text_is_cut_and_the_cut_counted(self, tmp_path, tokenizer):
        split, _, cut = self.split(tmp_path, tokenizer, 8)
        tokens = [tokenizer.decode(ids) for ids in split["input_ids"]]
        assert cut == 2
        assert tokens == ["[CLS] a b c [SEP] d e [SEP]", "[CLS] a b c d [SEP] i [SEP]", "[CLS] a [SEP] b c d e [SEP]"]
        assert split["token_type_ids"][1] == [0] * 6 + [1] * 2

    def test_batches_have_the_types(self, tmp_path, tokenizer):
        split, kind, _ = self.split(tmp_path, tokenizer, 32)
        (batch,) = batches.evaluation_batches(split, kind, tokenizer)
        assert batch["token_type_ids"].shape == batch["input_ids"].shape
        for place, row in enumerate(batch["row"].tolist()):
            assert batch["token_type_ids"][place].sum() == sum(split["token_type_ids"][row])
        cut = batches.Batches(split, kind, tokenizer, batch_size=3, max_tokens=6, seed=1)(0)
        assert cut["token_type_ids"].shape == cut["input_ids"].shape == (3, 6)
        one = batches.latency_batch(split, tokenizer, tokens=16)
        assert one["token_type_ids"].shape == (1, 16)

    @pytest.mark.parametrize("sizes", [(3, 9), (9, 3), (7, 7), (8, 7), (1, 12), (12, 1), (2, 3)])
    def test_a_pair_is_cut_as_the_tokenizer_would(self, tokenizer, sizes):
        texts = [" ".join("abcdefghijkl"[:size]) for size in sizes]
        whole = tokenizer(*texts)["input_ids"]
        for most in (8, 9, 10, 11, 30):
            places = splits.positions_after_cut(whole, max_tokens=most, last=tokenizer.sep_token_id)
            expected = tokenizer(*texts, truncation="longest_first", max_length=most)["input_ids"]
            assert sorted(whole[i] for i in places) == sorted(expected)
            assert len(places) == min(most, len(whole))

    def test_two_closing_tokens_between_the_texts_stay(self):
        """As RoBERTa has them: <s> a a a a </s> </s> b b </s>."""
        ids = [0, 5, 5, 5, 5, 2, 2, 6, 6, 2]
        assert [ids[i] for i in splits.positions_after_cut(ids, max_tokens=8, last=2)] == [0, 5, 5, 2, 2, 6, 6, 2]

    def test_rows_with_one_text_in_common_are_not_equal(self):
        rows = [
            Classification.example("a", "b", "x"),
            Classification.example("a", "c", "x"),
            Classification.example("A", " b", "x"),
        ]
        kept, dropped = examples.clean(rows, exclude=[Classification.example("b", "a", "x")])
        assert (kept, dropped) == (rows[:2], examples.Dropped(duplicate=1))
        assert examples.shared_second_texts(rows[:1], rows[1:]) == 1


def test_the_summary_of_a_metric():
    scorers = {"accuracy": lambda rows: float(np.mean(rows < 8)), "f1": lambda rows: float(np.mean(rows < 5))}
    found = scores.summary(scorers, "accuracy", 10, resamples=50, seed=1)
    assert (found["score_low"], found["score_high"]) == pytest.approx(scores.wilson_interval(8, 10))
    found = scores.summary(scorers, "f1", 10, resamples=50, seed=1)
    assert {k: found[k] for k in ("metric", "score", "metrics", "rows")} == {
        "metric": "f1",
        "score": 0.5,
        "metrics": {"accuracy": 0.8, "f1": 0.5},
        "rows": 10,
    }
    assert found == scores.summary(scorers, "f1", 10, resamples=50, seed=1)
    assert found["score_low"] < 0.5 < found["score_high"]


def test_the_bootstrap_finds_the_interval_of_a_mean():
    """Of 400 normal values: mean ± 1.96 / 20."""
    values = np.random.default_rng(0).normal(size=400)
    low, high = scores.bootstrap_interval(lambda rows: float(values[rows].mean()), 400, resamples=2000, seed=3)
    assert (low, high) == pytest.approx((values.mean() - 0.098, values.mean() + 0.098), abs=0.012)
