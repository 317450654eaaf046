"""A text that holds "[SEP]" or "</s>" is a text like any other: it ends nothing, in training as in serving."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pruneonce.models import checkpoint
from pruneonce.serving.texts import Texts
from pruneonce.tasks import splits
from pruneonce.tasks.examples import Example

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


def test_a_saved_tokenizer_does_not_change(tokenizer, tmp_path):
    """Models of before and after are the same bytes."""
    loaded, json = tokenizer
    loaded.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == json
    assert "split_special_tokens" not in (tmp_path / "tokenizer_config.json").read_text()
