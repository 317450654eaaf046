"""Text becomes the two parts of a corpus; a run that is killed goes on with the next shard, to the same bytes."""

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest

from pipeline.kept import Kept
from pruneonce.language import corpus, preparation, segments, shards


def write(tmp_path, tokenizer, documents, **changes):
    settings = {"block_tokens": 8, "held_out_ratio": 0.3, "max_tokens": None, "exclude": (), "seed": 0}
    with tempfile.TemporaryDirectory() as scratch:
        given = {"keep": Kept(Path(scratch)), **settings, **changes}
        return preparation.write_corpus(iter(documents), tokenizer, tmp_path, **given)


def test_write_corpus_counts_what_it_drops(tmp_path, tokenizer):
    documents = ["Fresh bread", "light snow", "", "fresh  BREAD", "the cook ruined a garlic sauce", "apple pie"] * 3
    counts = write(tmp_path, tokenizer, documents, exclude=["APPLE pie"])
    assert {k: counts[k] for k in ("documents", "empty", "duplicate", "in_test")} == {
        "documents": 3,
        "empty": 3,
        "duplicate": 9,
        "in_test": 3,
    }


def test_write_corpus_keeps_the_two_parts_apart(tmp_path, tokenizer):
    """Each document is one letter in its own spelling: a token stands in one part only."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    counts = write(tmp_path, tokenizer, [" ".join([c] * 13) for c in letters], block_tokens=9)
    parts = {
        name: {int(t) for row in corpus.read_blocks(tmp_path / f"{name}.arrow")[:]["tokens"] for t in row}
        for name in ("train", "held_out")
    }
    special = {tokenizer.cls_token_id, tokenizer.sep_token_id}
    assert parts["train"] & parts["held_out"] == special
    assert parts["train"] | parts["held_out"] == special | set(tokenizer.convert_tokens_to_ids(list(letters)))
    assert len(parts["held_out"]) > 2
    assert counts["train_tokens"] == 9 * counts["train_blocks"]
    assert counts["train_blocks"] + counts["held_out_blocks"] == 26 * 14 // 7


def test_max_tokens_limits_training_only(tmp_path, tokenizer):
    documents = [f"{a} {b} the oven improved the wooden spoon" for a in "abcdefgh" for b in "xyz"]
    free = write(tmp_path, tokenizer, documents)
    counts = write(tmp_path, tokenizer, documents, max_tokens=25)
    assert counts["train_blocks"] == 3
    assert counts["held_out_blocks"] == free["held_out_blocks"] > 0
    assert len(corpus.read_blocks(tmp_path / "train.arrow")) == 3


WORDS = ["light", "snow", "fresh", "bread", "garlic", "sauce", "wooden", "spoon", "apple", "pie"]
# Documents of 4 to 103 words, with every kind that is dropped; enough for two windows of segment pairs.
MANY = [" ".join(WORDS[(i * j + j) % 10] for j in range(4 + i % 100)) + f" {i} ." for i in range(520)]
MANY[5::50] = [*["", MANY[0], " Apple PIE "] * 3, "", "apple pie"]
WRITERS = {"packed": {}, "pairs": {"write": partial(segments.write_pairs, short_ratio=0.1, seed=0)}}


class Killed(BaseException):
    """As sudden as the end of the process, for what runs in it."""


def corpus_of(folder, tokenizer, keep, **changes):
    """Counts and the bytes of both parts."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"block_tokens": 16, "held_out_ratio": 0.2, "max_tokens": None, "exclude": ["apple pie"], "seed": 0}
    counts = preparation.write_corpus(iter(MANY), tokenizer, folder, keep=keep, **settings | changes)
    return counts, *((folder / f"{part}.arrow").read_bytes() for part in ("train", "held_out"))


@pytest.fixture
def tokenised(monkeypatch):
    """The texts that were tokenised so far."""
    texts = list[str]()

    def counting(tokenizer, encoder=shards._encoder):
        ids = encoder(tokenizer)
        return lambda chunk: texts.extend(chunk) or ids(chunk)

    monkeypatch.setattr(shards, "_encoder", counting)
    return texts


@pytest.mark.parametrize(("kind", "max_tokens"), [("packed", None), ("packed", 2000), ("pairs", None), ("pairs", 2000)])
def test_no_byte_depends_on_the_size_of_a_shard(tmp_path, tokenizer, kind, max_tokens):
    found = {
        size: corpus_of(
            tmp_path / str(size),
            tokenizer,
            Kept(tmp_path / f"scratch-{size}"),
            max_tokens=max_tokens,
            shard_characters=size,
            **WRITERS[kind],
        )
        for size in (3000, 20_000, 10**9)
    }
    assert found[3000] == found[20_000] == found[10**9]
    assert found[3000][0]["in_test"] == 4
    kept = {size: len(list(tmp_path.glob(f"scratch-{size}/*/*.arrow"))) for size in found}
    assert kept[3000] > 30
    assert 5 < kept[20_000] < 15
    assert kept[10**9] == 1


def test_a_shard_may_be_a_single_document(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "MANY", MANY[:12])
    found = [
        corpus_of(tmp_path / str(size), tokenizer, Kept(tmp_path / f"_{size}"), shard_characters=size) for size in (1, 99999)
    ]
    assert found[0] == found[1]
    assert len(list(tmp_path.glob("_1/*/*.arrow"))) == 12


@pytest.mark.parametrize("kind", WRITERS)
def test_a_killed_preparation_goes_on_with_the_next_shard(tmp_path, tokenizer, tokenised, kind):
    sizes = {"shard_characters": 20_000, **WRITERS[kind]}
    whole = corpus_of(tmp_path / "whole", tokenizer, Kept(tmp_path / "other"), **sizes)
    count, once = len(list(tmp_path.glob("other/*/*.arrow"))), sorted(tokenised)
    assert count > 5
    tokenised.clear()
    for survived in (1, 2, 4):

        def until(name, make, last=survived):
            def half(path):
                make(path)
                path.write_bytes(path.read_bytes()[:1000])
                raise Killed

            return Kept(tmp_path / "scratch")(name, make if int(name[6:12]) < last else half)

        with pytest.raises(Killed):
            corpus_of(tmp_path / "out", tokenizer, until, **sizes)
    killed = len(tokenised)
    assert corpus_of(tmp_path / "out", tokenizer, Kept(tmp_path / "scratch"), **sizes) == whole
    assert sorted(set(tokenised)) == sorted(set(once))
    assert len(tokenised) - killed == len(once) - sum(map(len, finished_texts(tmp_path, 4)))


def finished_texts(folder, count):
    """Of each of the first shards, the rows that have tokens."""
    for path in sorted(folder.glob("scratch/*/*.arrow"))[:count]:
        yield [ids for batch in shards._batches(path) for ids in batch["tokens"].to_pylist() if ids]


def test_a_damaged_shard_is_found_and_made_again(tmp_path, tokenizer, tokenised, capsys):
    kept = Kept(tmp_path / "scratch")
    whole = corpus_of(tmp_path / "out", tokenizer, kept, shard_characters=20_000)
    damaged = sorted(kept.folder.glob("*.arrow"))[2]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    tokenised.clear()
    assert corpus_of(tmp_path / "out", tokenizer, kept, shard_characters=20_000) == whole
    again = [ids for batch in shards._batches(damaged) for ids in batch["tokens"].to_pylist() if ids]
    assert len(tokenised) == len(again) > 5
    assert f"expected {damaged} as it was made, found it changed: it is made again." in capsys.readouterr().err


def test_with_max_tokens_only_what_is_needed_is_tokenised(tmp_path, tokenizer, tokenised):
    corpus_of(tmp_path / "out", tokenizer, Kept(tmp_path), max_tokens=500, shard_characters=5000)
    wanted = len(tokenised)
    tokenised.clear()
    corpus_of(tmp_path / "all", tokenizer, Kept(tmp_path / "all"), shard_characters=5000)
    assert wanted < 0.4 * len(tokenised)


# Documents of 20 kB that exist only while they are read; peak resident memory in bytes after n of them, then after 4 n.
STREAM = """
import json, resource, sys
from pathlib import Path
from pipeline.kept import Kept
from pruneonce.language import preparation
from pruneonce.models import checkpoint

def documents(count):
    words = "the cook improved a garlic sauce with light fresh bread and snow".split()
    for i in range(count):
        yield f"document {i} " + " ".join(words[(i + j * j) % len(words)] for j in range(3500))

peaks = []
for count in (150, 600):
    folder = Path(sys.argv[2])
    preparation.write_corpus(
        documents(count), checkpoint.load_tokenizer(Path(sys.argv[1])), folder, keep=Kept(folder / str(count)),
        block_tokens=128, held_out_ratio=0.02, max_tokens=None, exclude=(), seed=0,
    )
    peaks.append(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(peaks))
"""


def test_a_corpus_is_streamed(tmp_path, tiny_folder):
    """Four times the text (9 MB more, all of it in one shard) takes no more memory: neither text nor tokens are held."""
    words = [sys.executable, "-c", STREAM, str(tiny_folder), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    small, large = json.loads(done.stdout.splitlines()[-1])
    written = (tmp_path / "train.arrow").stat().st_size
    assert written > 8e6
    assert large - small < 4e6
