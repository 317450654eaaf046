"""A task's rows as tokenised splits that share no text; a split that the source lacks is carved from train.

reads   source     folder with train and perhaps validation, test     fetch
        model      for its tokenizer                                   fetch
writes  splits     train, validation, test: text, label, input_ids     data/tasks/<task>
"""

import json

from pipeline.params import Common, PrepareTask
from pipeline.stage import Dep, Item, Log, Metrics, Out, main
from pruneonce import checkpoint, tables, tasks
from pruneonce.errors import DataError


def run(item: Item, source: Dep, model: Dep, splits: Out, *, common: Common, prepare_task: PrepareTask, log: Log) -> Metrics:
    p, metrics = prepare_task, {}

    def rows(split: str) -> list[tasks.Example] | None:
        path = tables.find_split(source, split)
        if path is None:
            return None
        return [(row[p.text], row[p.label]) for row in tables.read(path, [p.text, p.label], skip_rows=p.skip_rows)]

    given = {split: rows(split) for split in tasks.SPLITS}
    if given["train"] is None:
        raise DataError(f"expected a file train.* in source {p.source!r}, found {sorted(f.name for f in source.iterdir())}.")

    # A given test split is kept whole but for empty rows; what it shares with the others leaves them, never it.
    test, dropped_test = tasks.clean(given["test"] or [], keep_duplicates=True)
    validation, dropped_validation = tasks.clean(given["validation"] or [], exclude=test)
    train, dropped_train = tasks.clean(given["train"], exclude=[*test, *validation])
    total = len(train)
    if given["test"] is None:
        train, test = tasks.carve(train, p.test_ratio, seed=common.seed)
    if given["validation"] is None:
        train, validation = tasks.carve(train, p.validation_ratio * total / len(train), seed=common.seed)

    names = tasks.label_names(train, [*validation, *test], p.labels)
    tokenizer = checkpoint.load_tokenizer(model)
    splits.mkdir(parents=True, exist_ok=True)
    for split, examples in zip(tasks.SPLITS, (train, validation, test), strict=True):
        if not examples:
            raise DataError(f"expected rows in the {split} split of {item}, found none.")
        path = splits / f"{split}.arrow"
        cut = tasks.write_split(path, examples, names, tokenizer, max_tokens=p.max_tokens)
        metrics[split] = {"rows": len(examples), "cut": cut}
    (splits / "labels.json").write_text(json.dumps(names) + "\n")
    dropped = {"train": dropped_train, "validation": dropped_validation, "test": dropped_test}
    return {**metrics, "classes": len(names), "dropped": {split: vars(d) for split, d in dropped.items()}}


if __name__ == "__main__":
    main(run)
