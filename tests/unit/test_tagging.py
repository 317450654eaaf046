"""Tags of words: places, losses, entity F1 against seqeval and by hand."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from seqeval.metrics import f1_score

from pruneonce.batch import IGNORED
from pruneonce.deployment import parity
from pruneonce.errors import DataError
from pruneonce.tasks import batches, examples, splits
from pruneonce.tasks.tagging import TokenClassification
from tests.conftest import Settings

TAGS = ["O", "B-X", "I-X", "B-Y"]
KIND = TokenClassification("entity_f1", TAGS)


@pytest.fixture
def split(tmp_path, tokenizer):
    """Three sentences: the second has words of several tokens, the third is too long for 10 tokens."""
    rows = [("a b c", "O B-X I-X"), ("zz a qqq", "B-Y O B-X"), ("a b c d e f g h i j", "O " * 9 + "B-X")]
    examples = [TokenClassification.example(*row) for row in rows]
    assert splits.write_split(tmp_path / "s.arrow", examples, KIND, tokenizer, max_tokens=10) == 1
    return splits.read_split(tmp_path / "s.arrow")


def answer(split, tags):
    """Logits whose largest are these tags at the first token of each word, and nonsense elsewhere."""
    found = []
    for ids, places, row in zip(split["input_ids"], split["places"], tags, strict=True):
        logits = np.full((len(ids), 4), -1.0)
        logits[:, 3] = 0.0
        for place, tag in zip(places, row, strict=True):
            if place >= 0:
                logits[place, TAGS.index(tag)] = 1.0
        found.append(logits)
    return found


def test_rows_are_lists_or_text_with_white_space():
    wanted = examples.Example(("a b",), (("a", "b"), ("O", "B-X")))
    assert TokenClassification.example("a  b", "O B-X") == TokenClassification.example(["a", "b"], ["O", "B-X"]) == wanted
    assert TokenClassification.example("", "").label is None


def test_a_tag_too_few_is_an_error():
    with pytest.raises(DataError, match=r"a tag for each of 3 words, found 2 \(text: 'a b c'\)"):
        TokenClassification.example(["a", "b", "c"], ["O", "O"])


def test_entities_need_tags_that_name_them():
    rows = [TokenClassification.example("a b", "NN VB")]
    with pytest.raises(DataError, match="expected tags like B-PER"):
        TokenClassification.from_rows(Settings(metric="entity_f1"), rows, [])
    assert TokenClassification.from_rows(Settings(metric="token_accuracy"), rows, []).classes == ["NN", "VB"]


def test_places_are_those_of_words_that_were_split_before(tokenizer, tmp_path):
    """Where a tokenizer splits at white space and punctuation anyway, as transformers' own way for words says."""
    rows = [("zz, a qqq!", "B-Y O B-X"), ("(a) x-y", "O B-X"), ("a\u00a0b c", "O B-X I-X")]
    made = [TokenClassification.example(*row) for row in rows]
    splits.write_split(tmp_path / "s.arrow", made, KIND, tokenizer, max_tokens=32)
    split = splits.read_split(tmp_path / "s.arrow")
    encoded = tokenizer([list(row.label[0]) for row in made], is_split_into_words=True)
    assert split["input_ids"][:] == encoded["input_ids"]
    words = [encoded.word_ids(i) for i in range(len(rows))]
    assert split["places"][:] == [[w.index(n) for n in range(len(r.label[0]))] for w, r in zip(words, made, strict=True)]


def test_byte_level_tokens_keep_the_spaces_between_words(byte_level, tmp_path):
    made = [TokenClassification.example(["snow", "snow", "new york"], ["O", "B-X", "B-Y"])]
    splits.write_split(tmp_path / "s.arrow", made, KIND, byte_level, max_tokens=64)
    split = splits.read_split(tmp_path / "s.arrow")
    (ids,), (places,) = split["input_ids"][:], split["places"][:]
    assert ids == byte_level("snow snow new york")["input_ids"]
    assert [byte_level.decode(ids[place:-1]).strip() for place in places] == [
        "snow snow new york",
        "snow new york",
        "new york",
    ]


def test_a_word_is_told_by_its_first_token(split, tokenizer):
    assert split["places"][:] == [[1, 2, 3], [1, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8, -1, -1]]
    assert [len(ids) for ids in split["input_ids"]] == [5, 8, 10]
    (batch,) = batches.evaluation_batches(split, KIND, tokenizer)
    none = IGNORED
    assert batch["labels"].tolist() == [
        [none, 0, 1, 2, none, none, none, none, none, none],
        [none, 3, none, 0, 1, none, none, none, none, none],
        [none, 0, 0, 0, 0, 0, 0, 0, 0, none],
    ]


def test_a_batch_that_is_cut_has_no_tag_on_its_closing_token(split, tokenizer):
    batch = batches.Batches(split, KIND, tokenizer, batch_size=3, max_tokens=5, seed=1)(0)
    assert (batch["labels"][:, -1] == IGNORED).all()
    assert int((batch["labels"] != IGNORED).sum()) == 3 + 2 + 3


def test_losses_are_means_over_words(split, tokenizer):
    (batch,) = batches.evaluation_batches(split, KIND, tokenizer)
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 10, 4, generator=draw) for _ in range(2))
    words = [(i, j) for i in range(3) for j in range(10) if batch["labels"][i, j] != IGNORED]
    assert len(words) == 14
    log_q, log_p = ((x.double() / 2).log_softmax(-1) for x in (student, teacher))
    soft = sum(float((log_p[w].exp() * (log_p[w] - log_q[w])).sum()) for w in words) / 14
    hard = -sum(float(student.double().log_softmax(-1)[w][batch["labels"][w]]) for w in words) / 14
    assert float(KIND.hard(student, batch)) == pytest.approx(hard, rel=1e-5)
    assert float(KIND.soft(student, teacher, batch, 2.0)) == pytest.approx(4 * soft, rel=1e-5)
    assert len(KIND.decisions(student.numpy(), batch)) == 14


def test_a_batch_without_a_word_costs_nothing():
    """A micro-batch whose words were all cut off, say; a mean over nothing would be nan and stop the run."""
    student = torch.randn(2, 5, 4, requires_grad=True)
    batch = {"labels": torch.full((2, 5), IGNORED)}
    loss = KIND.hard(student, batch) + KIND.soft(student, torch.randn(2, 5, 4), batch, 2.0)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert student.grad.eq(0).all()


def test_metrics_by_hand_and_by_seqeval(split):
    """Expected X(1-2) · Y(0), X(2) · X(9), which is cut; said X(1-2) · Y(0), Y(2) · nothing: 2 right of 4 and 3."""
    said = [["O", "B-X", "I-X"], ["B-Y", "O", "B-Y"], ["O"] * 10]
    total, scorers = KIND.scorers(split, answer(split, said))
    rows = np.arange(total)
    assert total == 3
    assert scorers["entity_f1"](rows) == pytest.approx(2 * 2 / (4 + 3))
    assert scorers["token_accuracy"](rows) == pytest.approx(14 / 16)
    right = [[TAGS[tag] for tag in tags] for tags in split["label"]]
    for chosen in ([0, 1, 2], [1, 1, 2], [0], [2]):
        expected = f1_score([right[i] for i in chosen], [said[i] for i in chosen], zero_division=0)
        assert scorers["entity_f1"](np.array(chosen)) == pytest.approx(expected)


def test_other_tags_have_no_entities():
    kind = TokenClassification("token_accuracy", ["NN", "VB"])
    split = Dataset.from_dict({"label": [[0, 1]], "places": [[1, 2]]})
    _, scorers = kind.scorers(split, [np.array([[0, 0], [1, 0], [1, 0], [0, 0]])])
    assert set(scorers) == {"token_accuracy"}
    assert scorers["token_accuracy"](np.array([0])) == 0.5


def test_parity_is_of_the_tokens_that_a_tag_is_read_from(split, tokenizer):
    """Padding, special tokens and the later pieces of a word have logits too, which nothing has ever trained."""
    (batch,) = batches.evaluation_batches(split, KIND, tokenizer)
    words = batch["labels"].numpy() != IGNORED
    right = np.random.default_rng(0).normal(size=(*words.shape, len(TAGS)))
    texts = parity.Texts([batch], KIND.outputs, KIND.decisions, KIND.compared)

    def found(logits):
        return parity.differences(parity.Reference(texts, [right]), [logits])

    assert 0 < words.sum() < words.size
    elsewhere = found(np.where(words[..., None], right, right + 50.0))
    assert (elsewhere["max_difference"], elsewhere["same_decision"]) == (0.0, 1.0)
    assert elsewhere["max_logit"] == np.abs(right[words]).max()
    assert found(np.where(words[..., None], right + 0.5, right))["max_difference"] == pytest.approx(0.5)


def test_a_batch_without_a_word_is_no_difference(split, tokenizer):
    (batch,) = batches.evaluation_batches(split, KIND, tokenizer)
    empty = {**batch, "labels": torch.full_like(batch["labels"], IGNORED)}
    texts = parity.Texts([batch, empty], KIND.outputs, KIND.decisions, KIND.compared)
    logits = [np.ones((*batch["labels"].shape, len(TAGS)))] * 2
    assert parity.differences(parity.Reference(texts, logits), logits)["max_difference"] == 0.0
