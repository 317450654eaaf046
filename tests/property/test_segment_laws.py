"""Laws of segment pairs: nothing is lost, nothing is too long, what follows follows."""

from hypothesis import given
from hypothesis import strategies as st

from pruneonce.language import segments
from pruneonce.language.segments import NEXT, RANDOM

# Lengths of documents and where their sentences end; token = 1000 * document + position, so that its place can be told.
texts = st.lists(st.tuples(st.integers(0, 60), st.sets(st.integers(0, 59))), min_size=2, max_size=12).filter(
    lambda found: sum(length > 0 for length, _ in found) >= 2
)


@given(texts, st.integers(2, 20), st.floats(0, 1), st.integers(0, 2**31))
def test_pairs_tile_their_documents(found, room, short_ratio, seed):
    documents = [[1000 * i + j for j in range(length)] for i, (length, _) in enumerate(found, 1)]
    ends = {1000 * i + j for i, (_, places) in enumerate(found, 1) for j in places}

    def made():
        return list(segments.pairs(iter(documents), room=room, short_ratio=short_ratio, ends=ends, seed=seed))

    pairs = made()
    assert [tokens for tokens, _ in pairs] == [tokens for tokens in documents if tokens]
    for tokens, of_document in pairs:
        start = 0
        for pair in of_document:
            both = pair.first + pair.second
            assert pair.first
            assert pair.second
            assert len(both) <= room
            if pair.label == NEXT:
                assert both == tokens[start : start + len(both)]
                assert pair.used == len(both)
            else:
                assert pair.label == RANDOM
                assert pair.first == tokens[start : start + len(pair.first)]
                assert pair.used == len(pair.first)
                other, place = divmod(pair.second[0], 1000)
                assert other != tokens[0] // 1000
                assert pair.second == documents[other - 1][place : place + len(pair.second)]
            start += pair.used
        assert len(tokens) - start in (0, 1)
    assert made() == pairs
