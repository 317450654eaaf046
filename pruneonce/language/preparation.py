"""Text as the two parts of a corpus: `train.arrow` and `held_out.arrow`."""

from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from pruneonce.language.blocks import Writer, write_packed
from pruneonce.language.shards import DUPLICATE, EMPTY, HELD_OUT, IN_TEST, TRAIN, Keep, Shards
from pruneonce.text import text_key


def write_corpus(
    documents: Iterable[str],
    tokenizer,
    folder: Path,
    *,
    keep: Keep,
    block_tokens: int,
    held_out_ratio: float,
    max_tokens: int | None,
    exclude: Iterable[str],
    seed: int,
    write: Writer = write_packed,
    shard_characters: int = 16_000_000,
) -> dict[str, int]:
    """Tokenise documents into `train.arrow` and `held_out.arrow`. Returns counts of documents, blocks and tokens.

    keep, shard_characters: see `Shards`.
    exclude: test texts. A document that equals one up to case and white space is dropped, and so is a repeated document.
    A document that differs by a word, or that contains a test text, stays.
    write: makes the rows of a part from its documents. max_tokens: of the part `train`.
    The hash of a document decides its part, so equal documents are never in both.
    """
    shards = Shards(
        tqdm(documents, desc="tokenise", unit=" documents", mininterval=1.0),
        tokenizer,
        keep,
        banned={text_key(text) for text in exclude},
        held_out_ratio=held_out_ratio,
        seed=seed,
        shard_characters=shard_characters,
    )
    sizes = dict[str, int]()
    for part, limit in ((TRAIN, max_tokens), (HELD_OUT, None)):
        written = write(folder / f"{part}.arrow", shards.part(part), tokenizer, block_tokens=block_tokens, max_tokens=limit)
        sizes |= {f"{part}_{name}": count for name, count in written.items()}
    fates = shards.fates
    dropped = {fate: fates[fate] for fate in (EMPTY, DUPLICATE, IN_TEST)}
    return {"documents": fates[TRAIN] + fates[HELD_OUT], **dropped, **sizes}
