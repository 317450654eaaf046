"""Laws of texts, blocks and batches."""

import string

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruneonce.batch import IGNORED
from pruneonce.language import blocks, corpus
from pruneonce.tasks import examples, scores
from pruneonce.tasks.batches import collate
from pruneonce.tasks.classification import Classification
from pruneonce.text import text_key

words = st.lists(st.text(string.ascii_letters + string.digits + "äöüßéñ東京.,!", min_size=1, max_size=8), max_size=8)
gaps = st.sampled_from([" ", "  ", "\n", "\t ", "\u00a0", "\r\n"])


@given(words, st.lists(gaps, min_size=10, max_size=10), st.integers(0, 1000))
def test_text_key_ignores_case_and_white_space(text, between, seed):
    key = text_key(" ".join(text), seed)
    spread = between[9] + "".join(word + gap for word, gap in zip(text, between, strict=False))
    for variant in (spread, spread.upper(), spread.lower(), spread.swapcase()):
        assert text_key(variant, seed) == key
    assert 0 <= key < 2**64


@given(st.lists(words.map(" ".join), unique_by=lambda t: t.casefold(), max_size=30))
def test_different_texts_have_different_keys(texts):
    assert len({text_key(t) for t in texts}) == len({" ".join(t.casefold().split()) for t in texts})


documents = st.lists(st.lists(st.integers(10, 99), max_size=15), max_size=12)


@given(documents, st.integers(3, 12), st.integers(1, 4))
def test_pack_keeps_every_token_in_order(documents, block_tokens, batch_blocks):
    arrays = [np.array(tokens, np.int32) for tokens in documents]
    batches = list(blocks.pack(arrays, block_tokens=block_tokens, first=2, last=3, batch_blocks=batch_blocks))
    assert all(batch.dtype == np.int32 and len(batch) == batch_blocks for batch in batches[:-1])
    rows = [row.tolist() for batch in batches for row in batch]
    assert all(len(row) == block_tokens and row[0] == 2 and row[-1] == 3 for row in rows)
    stream = [token for tokens in documents for token in (*tokens, 3)]
    packed = [token for row in rows for token in row[1:-1]]
    assert packed == stream[: len(packed)]
    assert len(stream) - len(packed) < block_tokens - 2  # an incomplete block is all that is lost


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**31), st.integers(0, 5))
def test_an_epoch_shows_no_row_twice(tokenizer, size, batch_size, seed, epoch):
    per_epoch = max(1, size // batch_size)
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    batches = corpus.MaskedBlocks(range(size), tokenizer, batch_size=batch_size, probability=0.1, seed=seed)
    rows = np.concatenate([batches.rows(s) for s in steps])
    assert len(set(rows)) == len(rows) == min(size, per_epoch * batch_size)
    assert set(rows) <= set(range(size))


@given(st.integers(0, 2**31), st.floats(0.01, 0.99), st.integers(1, 6), st.integers(3, 20))
def test_masking_changes_chosen_tokens_only_and_is_a_function_of_its_seed(seed, probability, rows, length):
    tokens = torch.randint(0, 50, (rows, length), generator=torch.Generator().manual_seed(seed + 1))

    def masked():
        return corpus.mask_tokens(
            tokens,
            probability=probability,
            mask_token=4,
            vocabulary=50,
            special=[0, 1, 2, 3, 4],
            generator=torch.Generator().manual_seed(seed),
        )

    inputs, labels = masked()
    chosen = labels != IGNORED
    assert torch.equal(inputs[~chosen], tokens[~chosen])
    assert torch.equal(labels[chosen], tokens[chosen])
    assert (tokens[chosen] > 4).all()
    assert all(torch.equal(a, b) for a, b in zip(masked(), (inputs, labels), strict=True))


rows = st.lists(st.tuples(words.map(" ".join), st.sampled_from(["", "a", "b", "c"])), max_size=40)


@given(rows, rows, st.floats(0.05, 0.9), st.integers(0, 100))
def test_splits_share_no_text_and_lose_no_row_uncounted(train, test, ratio, seed):
    train, test = ([Classification.example(*row) for row in rows] for rows in (train, test))
    kept_test, dropped_test = examples.drop_empty(test)
    kept, dropped = examples.clean(train, exclude=kept_test)
    rest, carved = examples.carve(kept, ratio, seed=seed)
    splits = [{text_key(row.texts[0]) for row in part} for part in (rest, carved, kept_test)]
    assert sum(map(len, splits)) == len(set.union(*splits))
    assert len(rest) + len(carved) + dropped.empty + dropped.duplicate + dropped.held_out == len(train)
    assert len(kept_test) + dropped_test.empty == len(test)
    assert {row.label for row in rest} == {row.label for row in kept}


@given(
    st.dictionaries(st.text("abcdef", min_size=1), st.integers(1, 60), max_size=40),
    st.floats(0.01, 0.99),
    st.integers(0, 99),
)
def test_carving_holds_the_ratio_over_all_rows_and_leaves_some_of_each(sizes, ratio, seed):
    found, whole = examples.quotas(sizes, ratio, seed=seed), sum(sizes.values())
    assert all(0 <= found[stratum] < size for stratum, size in sizes.items())
    most = whole - len(sizes)  # one of each stays
    missed = sum(found.values()) - min(ratio * whole, most)
    assert abs(missed) < 1 + 1e-5
    alone = {stratum: round(ratio * size) for stratum, size in sizes.items()}
    if abs(sum(alone.values()) - ratio * whole) < 0.99 and all(alone[stratum] < size for stratum, size in sizes.items()):
        assert found == alone
    elif all(ratio * size <= size - 1 for size in sizes.values()):
        assert all(abs(found[stratum] - ratio * size) < 1 + 1e-5 for stratum, size in sizes.items())
    again = examples.quotas(dict(reversed(sizes.items())), ratio, seed=seed)
    assert again == found


@given(st.lists(st.integers(1, 30), min_size=2, max_size=30), st.floats(0.05, 0.5), st.integers(0, 99), st.data())
def test_one_row_more_moves_few_others(sizes, ratio, seed, data):
    before = {str(i): size for i, size in enumerate(sizes)}
    grown = data.draw(st.sampled_from(sorted(before)))
    after = examples.quotas(before | {grown: before[grown] + 1}, ratio, seed=seed)
    moved = sum(abs(after[i] - count) for i, count in examples.quotas(before, ratio, seed=seed).items())
    assert moved <= 4


@given(st.lists(st.lists(st.integers(5, 99), max_size=20), min_size=1, max_size=8), st.integers(3, 30))
def test_collate_pads_cuts_and_keeps_the_last_token(texts, max_tokens):
    rows = [{"input_ids": [2, *t, 3], "label": 0} for t in texts]
    batch = collate(rows, Classification("accuracy", ["a", "b"]), pad=0, max_tokens=max_tokens, last=3)
    assert batch["input_ids"].shape[1] == min(max_tokens, max(map(len, texts)) + 2)
    for ids, mask, text in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), texts, strict=True):
        length = sum(mask)
        assert mask == [1] * length + [0] * (len(mask) - length)
        assert length == min(len(text) + 2, max_tokens)
        assert ids[:length] == [2, *text[: length - 2], 3]
        assert set(ids[length:]) <= {0}


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_an_interval_holds_its_proportion_and_mirrors(total, share):
    correct = round(share * total)
    low, high = scores.wilson_interval(correct, total)
    assert 0 <= low <= correct / total + 1e-12
    assert correct / total - 1e-12 <= high <= 1
    mirrored = scores.wilson_interval(total - correct, total)
    np.testing.assert_allclose(mirrored, (1 - high, 1 - low), atol=1e-9)
