"""What a served model says of its logits, against the same numbers by hand, and against the answers of evaluation."""

import numpy as np
import pytest
from datasets import Dataset
from scipy.special import expit, softmax

from pruneonce.serving import answers
from pruneonce.serving.texts import Row
from pruneonce.tasks.answering import QuestionAnswering

CONTEXT = "rain fell late today"
WORDS = [(0, 4), (5, 9), (10, 14), (15, 20)]  # of the context, in characters


def window(begin: int) -> Row:
    """[CLS] question [SEP] two or three words of the context from `begin` on [SEP]."""
    words = WORDS[begin : begin + 3]
    offsets = [(0, 0), (0, 4), (0, 0), *words, (0, 0)]
    parts = [None, 0, None, *[1] * len(words), None]
    return Row(ids=[0] * len(offsets), types=[0] * len(offsets), offsets=offsets, parts=parts)


def columns(row: Row, number: int) -> dict:
    """The same window as a row of a split; -1 where a token is not of the context."""
    inside = [part == 1 for part in row.parts]
    begins, ends = ([one[side] if of else -1 for one, of in zip(row.offsets, inside, strict=True)] for side in (0, 1))
    return {"pair": CONTEXT, "window": number, "begins": begins, "ends": ends}


def by_hand(windows, *, most: int, n_best: int) -> tuple[float, str]:
    """Score and text of the best span of all windows, of at most `most` tokens between the `n_best` starts and ends."""
    found = []
    for row, start, end in windows:
        places = [i for i, part in enumerate(row.parts) if part == 1]
        starts, ends = (sorted(places, key=lambda i: -side[i])[:n_best] for side in (start, end))
        for i in starts:
            for j in ends:
                if i <= j < i + most:
                    found.append((float(start[i] + end[j]), CONTEXT[row.offsets[i][0] : row.offsets[j][1]]))
    return max(found)


@pytest.mark.parametrize("n_best", [1, 2, 9])
@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("threshold", [None, -2.0, 0.0, 2.5])
def test_an_answer_is_the_best_span_unless_no_answer_is_better(threshold, most, n_best):
    """Over both windows: no answer has the lowest score that a window gives it."""
    draw, said = np.random.default_rng(3), set()
    for _ in range(100):
        windows = [(row, *draw.normal(0, 2, (2, len(row.offsets)))) for row in (window(0), window(1))]
        for _, start, _ in windows:
            start[0] += 6 * draw.choice([0, 1])  # else no answer would hardly ever be the best
        try:
            score, text = by_hand(windows, most=most, n_best=n_best)
        except ValueError:  # every start lies behind every end
            score, text = -np.inf, ""
        null = min(start[0] + end[0] for _, start, end in windows)
        kind = {"null_threshold": threshold, "max_answer_tokens": most, "n_best": n_best}
        answer = answers.span(windows, CONTEXT, kind)
        abstains = threshold is not None and null - score > threshold
        assert answer["answer"] == ("" if abstains else text)
        assert answer["answer"] == CONTEXT[answer["begin"] : answer["end"]]
        assert answer["score"] == pytest.approx(max(score - null, -1e9), abs=1e-5)
        said.add(abstains)
    assert said == ({False} if threshold is None else {False, True})


def test_a_served_model_answers_as_evaluation_does():
    rows = [window(0), window(1)]
    draw = np.random.default_rng(4)
    for threshold in (None, 0.0):
        kind = QuestionAnswering("f1", 6, 3, 5, threshold)
        fields = {"null_threshold": threshold, "max_answer_tokens": 3, "n_best": 5}
        for _ in range(40):
            logits = [draw.normal(0, 2, (2, len(row.offsets))) for row in rows]
            split = Dataset.from_list([columns(row, number) for number, row in enumerate(rows)])
            (wanted,) = kind.predictions(split, logits)
            found = answers.span([(row, *out) for row, out in zip(rows, logits, strict=True)], CONTEXT, fields)
            assert found["answer"] == wanted


def test_labels_and_their_probabilities():
    found = answers.labels(np.array([2.0, -1.0, 0.0]), ["a", "b", "c"])
    assert found["labels"] == ["a"]
    assert found["probabilities"] == pytest.approx({"a": expit(2.0), "b": expit(-1.0), "c": 0.5}, abs=1e-6)


def test_a_label_and_the_probabilities_of_all():
    logits = np.array([1.0, 3.0, -2.0])
    found = answers.label(logits, ["a", "b", "c"])
    assert (found["label"], found["probability"]) == ("b", pytest.approx(softmax(logits)[1], abs=1e-6))
    assert list(found["probabilities"].values()) == pytest.approx(softmax(logits).tolist(), abs=1e-6)


def test_the_tag_of_a_word_is_that_of_its_first_token():
    """[CLS] New Yo ##rk [SEP]: the second token of a word says nothing, and the third word was cut."""
    row = Row(ids=[0] * 5, types=[0] * 5, offsets=[(0, 0), (0, 3), (4, 6), (6, 8), (0, 0)], parts=[None, 0, 0, 0, None])
    logits = np.array([[9.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 9.0], [0.0, 9.0]])
    found = answers.tags(logits, ["O", "B-X"], row, ["New", "York", "City"])
    assert found["tags"] == ["B-X", "O", None]
    assert found["probabilities"] == [pytest.approx(expit(1.0), abs=1e-6), pytest.approx(expit(2.0), abs=1e-6), None]
