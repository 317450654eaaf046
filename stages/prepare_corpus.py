"""Raw text -> blocks of tokens for masked language modelling, without the documents that are a test text of a task.

Texts are compared up to case and white space. Near duplicates of test texts stay, and so do the texts of train and
validation. Folders that params.yaml does not name are not read.
After a kill, it goes on with the next shard of documents.

reads   raw     the folders of the sources in `documents`           fetch, fetch_local
        splits  the test splits of the tasks                        prepare_task
        names   the tasks                                           list_tasks
writes  tokens  train.arrow, held_out.arrow: int32[blocks, length]; with next_sentence segment pairs, padded
"""

import json
from functools import partial

from pipeline.history import Log
from pipeline.kept import Kept
from pipeline.params.sections import Common, PrepareCorpus
from pipeline.stage import Dep, Metrics, Out, main
from pruneonce.errors import DataError
from pruneonce.language import blocks, preparation, segments
from pruneonce.models import checkpoint, configuration
from pruneonce.sources import tables
from pruneonce.tasks.splits import read_test_texts


def run(
    raw: Dep, splits: Dep, names: Dep, tokens: Out, *, common: Common, prepare_corpus: PrepareCorpus, log: Log
) -> Metrics:
    p = prepare_corpus
    tokenizer = checkpoint.load_tokenizer(raw / common.model)
    configuration.check_tokens(raw / common.model, p.block_tokens, setting="prepare_corpus.block_tokens")
    tests = (text for task in json.loads(names.read_text()) for text in read_test_texts(splits / task))

    def documents():
        for d in p.documents:
            path = tables.need_split(raw / d.source, d.split)
            yield from (row[d.column] for row in tables.read(path, [d.column], skip_rows=d.skip_rows))

    write: blocks.Writer = blocks.write_packed
    if p.next_sentence:
        write = partial(segments.write_pairs, short_ratio=p.short_ratio, seed=common.seed)
    tokens.mkdir(parents=True, exist_ok=True)
    counts = preparation.write_corpus(
        documents(),
        tokenizer,
        tokens,
        keep=Kept(log.scratch),
        block_tokens=p.block_tokens,
        held_out_ratio=p.held_out_ratio,
        max_tokens=p.max_tokens,
        exclude=tests,
        seed=common.seed,
        write=write,
    )
    if not counts["train_blocks"] or not counts["held_out_blocks"]:
        raise DataError(f"expected text for one block of {p.block_tokens} tokens in each part, found {counts}.")
    return counts


if __name__ == "__main__":
    main(run)
