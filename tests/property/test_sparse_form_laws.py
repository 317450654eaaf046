"""The sparse form holds every weight once, in the order that kernels/sparse.h states."""

import re
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pruneonce.deployment.sparse_form import BLOCK, CHUNK, MOST_INPUTS, SparseForm, narrow_form, sparse_form, stored_share

HEADER = (Path(__file__).parents[2] / "kernels/sparse.h").read_text()


@st.composite
def weights(draw) -> np.ndarray:
    """int8[outputs, inputs]: odd sizes, several blocks and chunks, any density, rows without weights."""
    outputs, inputs = draw(st.integers(1, 3 * CHUNK + 1)), draw(st.integers(1, 9 * BLOCK))
    seed = np.random.default_rng(draw(st.integers(0, 2**32)))
    weight = seed.integers(-128, 128, (outputs, inputs), np.int8)
    weight[seed.random(weight.shape) >= draw(st.sampled_from([0, 0.05, 0.15, 0.5, 1]))] = 0
    weight[seed.random(outputs) < 0.2] = 0
    return weight


def dense(form: SparseForm, outputs: int, inputs: int) -> np.ndarray:
    """The weight, read word by word."""
    weight, at = np.zeros((outputs, -(-inputs // 4) * 4), np.int8), 0
    for block, (counts, rows) in enumerate(zip(form.counts, form.rows, strict=True)):
        for count, row in zip(counts, rows, strict=True):
            for _ in range(count):
                first = 4 * (block * BLOCK + int(form.index[at]))
                word = form.words[at : at + 1].view(np.int8)
                assert not (weight[row, first : first + 4] * word).any(), "each weight once"
                weight[row, first : first + 4] += word
                at += 1
    assert at == len(form.words) == len(form.index)
    return weight[:, :inputs]


@given(weights())
def test_the_form_holds_every_weight(weight):
    form = sparse_form(weight)
    np.testing.assert_array_equal(dense(form, *weight.shape), weight)
    assert all(form.words != 0)


@given(weights())
def test_the_narrow_form_holds_every_weight_too(weight):
    """And no pair of a word's weights overflows 16 bits with activations of 255."""
    form = narrow_form(weight)
    np.testing.assert_array_equal(dense(form, *weight.shape), weight)
    pairs = np.abs(form.words.view(np.int8).astype(int)).reshape(-1, 2, 2).sum(-1)
    assert (pairs <= 128).all()
    assert (255 * pairs < 2**15).all()


def test_weights_that_are_narrow_are_stored_as_they_are():
    """As those of 7 bits are."""
    weight = np.random.default_rng(0).integers(-63, 64, (64, 100), np.int8)
    assert [array.tolist() for array in vars(narrow_form(weight)).values()] == [
        array.tolist() for array in vars(sparse_form(weight)).values()
    ]


@given(weights())
def test_outputs_with_more_words_come_first_in_their_chunk(weight):
    form = sparse_form(weight)
    for counts, rows in zip(form.counts, form.rows, strict=True):
        for at in range(0, len(rows), CHUNK):
            chunk = slice(at, at + CHUNK)
            assert sorted(rows[chunk]) == list(range(at, min(at + CHUNK, len(rows))))
            assert list(counts[chunk]) == sorted(counts[chunk], reverse=True)


@given(weights())
def test_the_share_of_stored_words(weight):
    outputs, inputs = weight.shape
    assert stored_share(weight) == len(sparse_form(weight).words) / (outputs * -(-inputs // 4))


def test_sizes_are_those_of_the_library():
    found = re.search(r"enum \{ BLOCK = (\d+), CHUNK = (\d+) \}.*enum \{ WIDEST_WEIGHT = 1 << (\d+) \}", HEADER, re.DOTALL)
    assert found is not None
    assert (int(found[1]), int(found[2]), 1 << int(found[3])) == (BLOCK, CHUNK, MOST_INPUTS)
