"""Extractive answers: windows, spans, losses; SQuAD's normalisation and scores worked by hand."""

import itertools
import re
import string
from collections import Counter

import numpy as np
import pytest
import torch

from pruneonce.errors import DataError
from pruneonce.tasks import answering, batches, examples, splits
from pruneonce.tasks.answering import QuestionAnswering
from tests.conftest import Settings

KIND = QuestionAnswering("f1", stride_tokens=4, max_answer_tokens=3, n_best=20, null_threshold=None)
CONTEXT = "the storm missed the valley. snow covered the old harbour, and fog left the coast before noon on monday"
SETTINGS = Settings(metric="f1", max_tokens=18, stride_tokens=4)


def row(question, context, *answers):
    found = [(text, context.index(text)) for text in answers]
    return QuestionAnswering.example(
        question, context, {"text": [t for t, _ in found], "answer_start": [s for _, s in found]}
    )


@pytest.fixture
def split(tmp_path, tokenizer):
    """Two questions on one long context, and one without an answer on a short one."""
    rows = [
        row("fog left", CONTEXT, "the coast", "coast"),
        row("missed", CONTEXT, "storm"),
        row("a very long question on a b c d e f g", "rain"),
    ]
    assert splits.write_split(tmp_path / "s.arrow", rows, KIND, tokenizer, max_tokens=18) == 1
    return splits.read_split(tmp_path / "s.arrow")


class TestRows:
    def test_the_context_keeps_its_characters(self):
        found = QuestionAnswering.example(" q ", "  a b", {"text": ["a"], "answer_start": [2]})
        assert found.texts == ("q", "  a b")
        assert found.label == (("a", 2),)
        assert found.group == "  a b"

    @pytest.mark.parametrize(
        "answers",
        [
            *(None, "a", ["a"], {"text": ["a"]}),
            *({"text": "a", "answer_start": [0]}, {"text": ["a"], "answer_start": 0}),  # no lists
            *({"text": ["a", "b"], "answer_start": [0]}, {"text": ["a"], "answer_start": ["x"]}),
        ],
    )
    def test_answers_are_texts_and_places(self, answers):
        with pytest.raises(DataError, match="expected answers like"):
            QuestionAnswering.example("q", "a b", answers)

    @pytest.mark.parametrize(("text", "start"), [("b", 1), ("c", 2), (" ", 1), ("b", 99), ("b", -1)])
    def test_an_answer_that_is_not_in_the_context(self, text, start):
        with pytest.raises(DataError, match=rf"expected answer '{text}' at character {start} of its context"):
            QuestionAnswering.example("q", "a b", {"text": [text], "answer_start": [start]})

    def test_lists_that_are_null_are_no_answer_and_a_context_may_be_a_number(self):
        assert QuestionAnswering.example("q", "a b", {"text": None, "answer_start": None}).label == ()
        assert QuestionAnswering.example("q", 1234, {"text": ["23"], "answer_start": [1]}).label == (("23", 1),)

    def test_no_answer_must_be_allowed(self):
        rows = [row("q", "a b", "a"), row("unanswered", "a b")]
        with pytest.raises(DataError, match=r"found none to 'unanswered'.*null_threshold"):
            QuestionAnswering.from_rows(SETTINGS, rows, [])
        asked = Settings(metric="f1", max_tokens=18, stride_tokens=4, null_threshold=0.0)
        assert QuestionAnswering.from_rows(asked, rows, []).null_threshold == 0

    def test_a_window_must_go_on(self):
        with pytest.raises(DataError, match="stride_tokens below half of max_tokens 18, found 5"):
            QuestionAnswering.from_rows(Settings(metric="f1", max_tokens=18, stride_tokens=5), [row("q", "a", "a")], [])

    def test_carving_takes_whole_contexts(self):
        rows = [row(f"question {i}", f"context {i % 7} a", "a") for i in range(70)]
        rest, carved = examples.carve(rows, 0.3, seed=1)
        assert (len(rest), len(carved)) == (50, 20)
        assert not {r.texts[1] for r in rest} & {r.texts[1] for r in carved}


class TestWindows:
    def test_windows_overlap_and_cover_the_context(self, split, tokenizer):
        windows = [r for r in split if r["text"] == "missed"]
        assert [r["window"] for r in windows] == list(range(len(windows)))
        assert len(windows) == 2
        spans = [[(b, e) for b, e in zip(r["begins"], r["ends"], strict=True) if b >= 0] for r in windows]
        for one, two in itertools.pairwise(spans):
            assert two[:4] == one[-4:]
        covered = {i for span in spans for b, e in span for i in range(b, e)}
        assert covered == {i for i, c in enumerate(CONTEXT) if c != " "}
        assert all(len(r["input_ids"]) <= 18 for r in split)

    def test_the_answer_s_tokens_and_cls_where_it_is_not(self, split, tokenizer):
        found = {}
        for r in split:
            first, last = r["label"]
            assert (first == 0) == (last == 0)
            if first:
                found.setdefault(r["text"], set()).add(CONTEXT[r["begins"][first] : r["ends"][last]])
        assert found == {"fog left": {"the coast"}, "missed": {"storm"}}
        assert any(r["label"] == [0, 0] for r in split if r["text"] == "missed")

    def test_a_long_question_leaves_room(self, split, tokenizer):
        (last,) = [r for r in split if r["pair"] == "rain"]
        assert tokenizer.decode(last["input_ids"]) == "[CLS] a very [SEP] rain [SEP]"
        assert last["label"] == [0, 0]

    def test_token_types_tell_question_from_context(self, split):
        for r in split:
            assert [int(b >= 0) for b in r["begins"]][:-1] == r["token_type_ids"][:-1]


class TestLosses:
    def test_half_start_half_end_without_padding(self, split, tokenizer):
        (batch,) = batches.evaluation_batches(split, KIND, tokenizer)
        rows, length = batch["input_ids"].shape
        draw = torch.Generator().manual_seed(0)
        student, teacher = (torch.randn(rows, 2, length, generator=draw) for _ in range(2))
        hard, soft, temperature = [], [], 2.0
        for i in range(rows):
            real = int(batch["attention_mask"][i].sum())
            for side in (0, 1):
                s, t = student[i, side, :real].double(), teacher[i, side, :real].double()
                hard.append(-float(s.log_softmax(-1)[batch["labels"][i, side]]))
                log_q, log_p = (s / temperature).log_softmax(-1), (t / temperature).log_softmax(-1)
                soft.append(float((log_p.exp() * (log_p - log_q)).sum()))
        assert min(int(n) for n in batch["attention_mask"].sum(1)) < length
        assert float(KIND.hard(student, batch)) == pytest.approx(np.mean(hard), rel=1e-5)
        assert float(KIND.soft(student, teacher, batch, temperature)) == pytest.approx(4 * np.mean(soft), rel=1e-5)
        assert KIND.decisions(student.numpy(), batch).shape == (2 * rows,)

    def test_the_logits_of_padding_are_neither_compared_nor_decided_upon(self, split, tokenizer):
        (batch,) = batches.evaluation_batches(split, KIND, tokenizer)
        one = np.random.default_rng(0).normal(size=(len(batch["row"]), 2, batch["input_ids"].shape[1]))
        padding = np.broadcast_to(batch["attention_mask"].numpy()[:, None] == 0, one.shape)
        assert padding.any()
        other = np.where(padding, 100.0, one)
        assert (KIND.compared(one, batch) == KIND.compared(other, batch)).all()
        assert KIND.compared(one, batch).size == (~padding).sum()
        assert (KIND.decisions(one, batch) == KIND.decisions(other, batch)).all()
        changed = one + np.eye(one.shape[-1])[1]  # the second token is no padding
        assert (KIND.compared(one, batch) != KIND.compared(changed, batch)).any()

    def test_padding_gets_no_gradient(self, split, tokenizer):
        (batch,) = batches.evaluation_batches(split, KIND, tokenizer)
        student = torch.zeros(len(batch["row"]), 2, batch["input_ids"].shape[1], requires_grad=True)
        loss = KIND.hard(student, batch) + KIND.soft(student, torch.randn_like(student), batch, 5.5)
        loss.backward()
        assert torch.isfinite(student.grad).all()
        assert (student.grad.transpose(1, 2)[batch["attention_mask"] == 0] == 0).all()


def logits_of(split, *, spans, null=-5.0):
    """Logits of every window: (question, text) -> score, half at its first token, half at its last one."""
    found = []
    for r in split:
        logits = np.full((2, len(r["input_ids"])), -9.0)
        logits[:, 0] = null / 2
        for (question, text), score in spans.items():
            if r["text"] == question and (start := r["pair"].find(text)) >= 0:
                for side, at in ((0, start), (1, start + len(text))):
                    if at in r[("begins", "ends")[side]]:
                        logits[side, r[("begins", "ends")[side]].index(at)] = score / 2
        found.append(logits)
    return found


class TestPredictions:
    def test_the_best_span_of_all_windows(self, split):
        spans = {
            ("fog left", "noon on"): 3.0,
            ("fog left", "the coast"): 4.0,
            ("missed", "storm"): 1.0,
            ("missed", "snow"): 0.5,
        }
        assert KIND.predictions(split, logits_of(split, spans=spans))[:2] == ["the coast", "storm"]

    def test_a_span_may_lie_in_the_overlap_of_two_windows(self, split):
        windows = [r for r in split if r["text"] == "missed"]
        shared = [b for b in windows[0]["begins"] if b >= 0 and b in windows[1]["begins"]]
        text = CONTEXT[shared[0] : windows[0]["ends"][windows[0]["begins"].index(shared[1])]]
        assert KIND.predictions(split, logits_of(split, spans={("missed", text): 2.0}))[1] == text

    def test_no_longer_than_allowed_and_never_backwards(self, split):
        spans = {("missed", "storm missed the valley"): 9.0, ("missed", "snow"): 2.0}
        logits = logits_of(split, spans=spans)
        assert len(KIND.predictions(split, logits)[1].split()) <= 3
        wide = QuestionAnswering("f1", 4, 9, 20, None)
        assert wide.predictions(split, logits)[1] == "storm missed the valley"

    def test_no_answer_where_it_beats_the_span_by_the_threshold(self, split):
        logits = logits_of(split, spans={("fog left", "the coast"): 2.0, ("missed", "storm"): 5.0}, null=4.0)
        for threshold, expected in ((None, ["the coast", "storm"]), (0.0, ["", "storm"]), (2.5, ["the coast", "storm"])):
            kind = QuestionAnswering("f1", 4, 3, 20, threshold)
            assert kind.predictions(split, logits)[:2] == expected

    def test_no_answer_is_told_by_the_window_that_believes_in_it_least(self, split):
        """Source: the evaluation of SQuAD 2.0 in the BERT repository: the smallest null score of all windows."""
        logits = logits_of(split, spans={("missed", "storm"): 2.0}, null=4.0)
        first = next(i for i, r in enumerate(split) if r["text"] == "missed")
        logits[first][:, 0] = -3.0
        assert QuestionAnswering("f1", 4, 3, 20, 0.0).predictions(split, logits)[1] == "storm"

    def test_scores_are_of_questions(self, split):
        kind = QuestionAnswering("f1", 4, 3, 20, 0.0)
        logits = logits_of(split, spans={("fog left", "coast"): 2.0, ("missed", "storm missed"): 2.0}, null=0.0)
        total, scorers = kind.scorers(split, logits)
        rows = np.arange(total)
        assert total == 3
        assert scorers["exact_match"](rows) == pytest.approx((1 + 0 + 1) / 3)
        assert scorers["f1"](rows) == pytest.approx((1 + 2 * 1 / 3 + 1) / 3)


class Official:
    """The two official scripts, written down as they are: evaluate-v1.1.py and evaluate-v2.0.py."""

    @staticmethod
    def normalize_answer(s):
        def remove_articles(text):
            return re.sub(r"\b(a|an|the)\b", " ", text)

        def white_space_fix(text):
            return " ".join(text.split())

        def remove_punc(text):
            exclude = set(string.punctuation)
            return "".join(ch for ch in text if ch not in exclude)

        return white_space_fix(remove_articles(remove_punc(s.lower())))

    @classmethod
    def f1_score_1(cls, prediction, ground_truth):
        prediction_tokens = cls.normalize_answer(prediction).split()
        ground_truth_tokens = cls.normalize_answer(ground_truth).split()
        common = Counter(prediction_tokens) & Counter(ground_truth_tokens)
        num_same = sum(common.values())
        if num_same == 0:
            return 0
        precision = 1.0 * num_same / len(prediction_tokens)
        recall = 1.0 * num_same / len(ground_truth_tokens)
        return (2 * precision * recall) / (precision + recall)

    @classmethod
    def version_1(cls, prediction, ground_truths):
        exact = max(int(cls.normalize_answer(prediction) == cls.normalize_answer(truth)) for truth in ground_truths)
        return exact, max(cls.f1_score_1(prediction, truth) for truth in ground_truths)

    @classmethod
    def compute_f1_2(cls, a_gold, a_pred):
        gold_toks = cls.normalize_answer(a_gold).split() if a_gold else []
        pred_toks = cls.normalize_answer(a_pred).split() if a_pred else []
        common = Counter(gold_toks) & Counter(pred_toks)
        num_same = sum(common.values())
        if len(gold_toks) == 0 or len(pred_toks) == 0:
            return int(gold_toks == pred_toks)
        if num_same == 0:
            return 0
        precision = 1.0 * num_same / len(pred_toks)
        recall = 1.0 * num_same / len(gold_toks)
        return (2 * precision * recall) / (precision + recall)

    @classmethod
    def version_2(cls, prediction, answers):
        gold_answers = [a for a in answers if cls.normalize_answer(a)] or [""]
        exact = max(int(cls.normalize_answer(a) == cls.normalize_answer(prediction)) for a in gold_answers)
        return exact, max(cls.compute_f1_2(a, prediction) for a in gold_answers)


TEXTS = ["", "the", "a", "!", "the Denver", "Denver", "Denver Broncos", "Broncos the Denver.", "an", "in Denver in"]


class TestOfficialScores:
    @pytest.mark.parametrize("answers", [[a] for a in TEXTS] + [[a, b] for a in TEXTS for b in TEXTS])
    def test_as_the_official_scripts_score(self, answers):
        for said in TEXTS:
            found = answering.exact_match_1(said, answers), answering.f1_1(said, answers)
            assert found == pytest.approx(Official.version_1(said, answers)), said
            found = answering.exact_match(said, answers), answering.f1(said, answers)
            assert found == pytest.approx(Official.version_2(said, answers)), said

    def test_no_answer_at_all_is_a_case_of_2_0(self):
        for said in TEXTS:
            assert (answering.exact_match(said, []), answering.f1(said, [])) == Official.version_2(said, [])

    @pytest.mark.parametrize(("threshold", "f1"), [(None, 0.0), (1e9, 1.0)])
    def test_questions_that_all_have_an_answer_are_scored_by_1_1(self, tokenizer, tmp_path, threshold, f1):
        kind = QuestionAnswering("f1", 4, 3, 20, threshold)
        splits.write_split(tmp_path / "s.arrow", [row("missed", CONTEXT, "the")], kind, tokenizer, max_tokens=40)
        split = splits.read_split(tmp_path / "s.arrow")
        total, scorers = kind.scorers(split, logits_of(split, spans={("missed", "the"): 2.0}))
        assert kind.predictions(split, logits_of(split, spans={("missed", "the"): 2.0})) == ["the"]
        assert {name: scorer(np.arange(total)) for name, scorer in scorers.items()} == {"exact_match": 1.0, "f1": f1}

    @pytest.mark.parametrize(
        ("answer", "normal"),
        [
            ("The  Eiffel Tower!", "eiffel tower"),
            ("an apple, a day", "apple day"),
            ("Theatre", "theatre"),  # an article is a whole word
            ("U.S.A.", "usa"),
            ("well-known", "wellknown"),
            ("Zürich’s", "zürich’s"),  # only ASCII punctuation goes
            ("the", ""),
            ("5\u00a0km", "5 km"),
        ],
    )
    def test_normalisation(self, answer, normal):
        assert answering.normalise(answer) == normal

    @pytest.mark.parametrize(
        ("said", "answers", "exact", "f1"),
        [
            ("the Denver Broncos", ["Denver Broncos", "Broncos"], 1, 1),
            ("Denver", ["Denver Broncos"], 0, 2 / 3),
            ("in Denver in", ["in Denver", "elsewhere"], 0, 4 / 5),  # words count as often as they stand
            ("Denver", ["Boston", "New Denver City"], 0, 1 / 2),
            ("Boston", ["Denver"], 0, 0),
            ("", [], 1, 1),
            ("Denver", [], 0, 0),
            ("", ["Denver"], 0, 0),
            ("the", ["a"], 1, 1),
        ],
    )
    def test_exact_match_and_f1(self, said, answers, exact, f1):
        assert answering.exact_match(said, answers) == exact
        assert answering.f1(said, answers) == pytest.approx(f1)
