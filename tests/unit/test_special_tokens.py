"""A text that holds "[SEP]" or "</s>" is a text like any other: it ends nothing, in training as in serving."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pruneonce.models import checkpoint
from pruneonce.serving.texts import Texts
from pruneonce.tasks import splits
from pruneonce.tasks.answering import QuestionAnswering
from pruneonce.tasks.examples import Example
from pruneonce.tasks.tagging import TokenClassification

ROLES = ("cls", "sep", "pad", "unk", "mask")
BERT = dict(zip(ROLES, ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"), strict=True))
ROBERTA = dict(zip(ROLES, ("<s>", "</s>", "<pad>", "<unk>", "<mask>"), strict=True))
WORDS = ["snow", "and rain", "the sun", "wind s", "SEP", "/ s >"]
MODELS = {
    "wordpiece": (
        lambda: models.WordPiece(unk_token="[UNK]"),
        pre_tokenizers.BertPreTokenizer,
        trainers.WordPieceTrainer,
        BERT,
    ),
    "bpe": (models.BPE, pre_tokenizers.ByteLevel, trainers.BpeTrainer, ROBERTA),
    "unigram": (models.Unigram, pre_tokenizers.Metaspace, trainers.UnigramTrainer, ROBERTA),
}
texts = st.lists(st.sampled_from([*WORDS, *BERT.values(), *ROBERTA.values()]), min_size=1, max_size=9).flatmap(
    lambda parts: st.sampled_from([" ".join(parts), "".join(parts), f" {'  '.join(parts)} "])
)


@pytest.fixture(scope="module", params=MODELS)
def tokenizer(request, tmp_path_factory):
    """As `load_tokenizer` gives it, of each algorithm, and its tokenizer.json. A pair has one or two sep in its middle."""
    model, split, trainer, names = MODELS[request.param]
    made = Tokenizer(model())
    made.pre_tokenizer = split()
    more = {"unk_token": "<unk>"} if request.param == "unigram" else {}
    special = [names[role] for role in ("pad", "unk", "cls", "sep", "mask")]
    learn = trainer(vocab_size=80, special_tokens=special, show_progress=False, **more)
    made.train_from_iterator(WORDS * 9, learn)
    cls, sep = names["cls"], names["sep"]
    middle = f"{sep} {sep}" if names is ROBERTA else sep
    ids = [(token, made.token_to_id(token)) for token in (cls, sep)]
    made.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {middle} $B {sep}", special_tokens=ids
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    roles = {f"{role}_token": token for role, token in names.items()}
    inputs = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=inputs, **roles).save_pretrained(folder)
    return checkpoint.load_tokenizer(folder), (folder / "tokenizer.json").read_text()


def encoded(tokenizer, given_texts, max_tokens):
    (ids,) = splits.encode_texts([Example(given_texts, "x")], tokenizer, max_tokens=max_tokens)[0]["input_ids"]
    return ids


@given(text=texts, most=st.integers(6, 40))
def test_of_one_text_the_end_is_cut_and_the_server_reads_the_same(tokenizer, text, most):
    loaded, json = tokenizer
    ids = encoded(loaded, (text,), most)
    assert ids == Texts(json, max_tokens=most).row(text).ids
    assert (ids[0], ids[-1]) == (loaded.cls_token_id, loaded.sep_token_id)
    assert ids.count(loaded.sep_token_id) == 1
    assert ids[:-1] == encoded(loaded, (text,), 999)[: len(ids) - 1]


@given(one=texts, other=texts, most=st.integers(8, 40), less=st.integers(8, 40))
def test_of_a_pair_both_texts_stay_and_the_server_reads_the_same(tokenizer, one, other, most, less):
    loaded, json = tokenizer
    ids, last = encoded(loaded, (one, other), most), loaded.sep_token_id
    assert ids == Texts(json, max_tokens=most).row(one, other).ids
    close, second = splits.between_texts(ids, last)
    assert ids.count(last) == second - close + 1
    assert ids[1:close] == encoded(loaded, (one,), 999)[1:close]
    assert ids[second:-1] == encoded(loaded, (other,), 999)[1 : len(ids) - second]
    assert min(close - 1, len(ids) - 1 - second) >= 1
    less = min(less, most)
    again = [ids[i] for i in splits.positions_after_cut(ids, max_tokens=less, last=last)]
    assert again.count(last) == second - close + 1
    assert len(again) == min(less, len(ids))


def test_tokens_that_a_model_adds_for_its_texts_are_read(tokenizer):
    """Markers of entities, say: they end nothing."""
    loaded, json = tokenizer
    marked = Tokenizer.from_str(json)
    marked.add_special_tokens(["[E1]"])
    more = PreTrainedTokenizerFast(
        tokenizer_object=marked, **{f"{role}_token": getattr(loaded, f"{role}_token") for role in ROLES}
    )
    marker, text = marked.token_to_id("[E1]"), f"snow [E1] the sun {loaded.sep_token} [E1]"
    ids = encoded(more, (text,), 40)
    assert ids == Texts(marked.to_str(), max_tokens=40).row(text).ids
    assert (ids.count(marker), ids.count(loaded.sep_token_id)) == (2, 1)


@given(context=texts, question=texts)
def test_of_a_question_the_windows_close_where_they_do(tokenizer, context, question):
    loaded, json = tokenizer
    kind = QuestionAnswering("f1", 4, 30, 20, None)
    columns, _ = kind.encode([Example((question, context), ())], loaded, max_tokens=40)
    served = [row.ids for row in Texts(json, max_tokens=40).windows(question, context, stride_tokens=4)]
    assert columns["input_ids"] == served
    for ids in served:
        close, second = splits.between_texts(ids, loaded.sep_token_id)
        assert ids.count(loaded.sep_token_id) == second - close + 1


@given(words=st.lists(st.sampled_from([*"abc", "snow", *BERT.values(), *ROBERTA.values()]), min_size=1, max_size=9))
def test_of_a_tagged_text_every_tag_is_at_its_word(tokenizer, words):
    loaded, _ = tokenizer
    kind = TokenClassification("token_accuracy", ["x"])
    row = Example((" ".join(words),), (tuple(words), ("x",) * len(words)))
    columns, _ = kind.encode([row], loaded, max_tokens=99)
    (ids,), (places,) = columns["input_ids"], columns["places"]
    assert ids.count(loaded.sep_token_id) == 1
    assert places == sorted(places)
    less = min(len(ids), 8)
    cut = splits.positions_after_cut(ids, max_tokens=less, last=loaded.sep_token_id)
    assert cut == [*range(less - 1), len(ids) - 1]
