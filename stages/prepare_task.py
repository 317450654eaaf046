"""A task's rows as tokenised splits that share no row, up to case and white space; a missing one is carved from train.

Rows of pairs are equal if both texts are. Splits may share one text of a pair: `shared_second_texts` counts the second ones.

reads   source     folder with train and perhaps validation, test     fetch
        model      for its tokenizer                                   fetch
writes  splits     train, validation, test: texts, label, input_ids; task.json: the task     data/tasks/<task>
"""

from pipeline.params.sections import Common, PrepareTask
from pipeline.stage import Dep, Item, Metrics, Out, main
from pruneonce.engine import accelerator
from pruneonce.models import checkpoint, configuration
from pruneonce.sources import tables
from pruneonce.tasks import classes, embedding, examples, kinds
from pruneonce.tasks.splits import cut_remark, write_split


def run(item: Item, source: Dep, model: Dep, splits: Out, *, common: Common, prepare_task: PrepareTask) -> Metrics:
    p, family = prepare_task, kinds.KINDS[prepare_task.kind]

    def read(split: str) -> list[examples.Example] | None:
        path = (tables.find_split if split in ("validation", "test") else tables.need_split)(source, split)
        return None if path is None else [*tables.read_as(path, p.columns, family.reader(p), skip_rows=p.skip_rows)]

    source_rows = {split: read(split) for split in (*examples.SPLITS, *p.further_tests)}
    ratios = {"validation_ratio": p.validation_ratio, "test_ratio": p.test_ratio}
    rows, dropped = examples.make_splits(source_rows, **ratios, seed=common.seed)
    held_out = [split for name, split in rows.items() if name != "train"]
    kind = family.from_rows(p, rows["train"], *held_out)

    all_classes = getattr(kind, "classes", ())
    lacking = ((name, classes.absent(map(kind.classes_of, split), all_classes)) for name, split in rows.items())
    absent = {name: some for name, some in lacking if some}
    doubtful = [] if p.labels else classes.maybe_missing(all_classes)
    for remark in classes.remarks(absent, doubtful, total=len(all_classes)):
        print(remark)

    tokenizer = checkpoint.load_tokenizer(model)
    setting = f"prepare_task.max_tokens, or that of tasks.{item}"
    configuration.check_tokens(model, p.max_tokens, setting=setting)  # now, before anything is trained
    splits.mkdir(parents=True, exist_ok=True)
    engine = accelerator(common)
    kind, rows = kind.taught(rows, model, tokenizer, splits, device=engine.device)
    kinds.save(kind, splits)
    sizes = {}
    for name, split in rows.items():
        cut = write_split(splits / f"{name}.arrow", split, kind, tokenizer, max_tokens=p.max_tokens)
        sizes[name] = {"rows": len(split), "cut": cut}
    most = p.max_tokens
    if isinstance(kind, embedding.Embedding):
        most, setting = kind.max_tokens, f"{setting}, or max_seq_length in sentence_bert_config.json where the model has one"
    if remark := cut_remark(sizes, max_tokens=most, setting=setting):
        print(f"{item}: {remark}")
    return {
        **sizes,
        "classes": len(all_classes),
        "dropped": {name: vars(counts) for name, counts in dropped.items()},
        "shared_second_texts": examples.shared_second_texts(rows["train"], *held_out),
        **({"lacking_classes": {name: len(some) for name, some in absent.items()}} if absent else {}),
    }


if __name__ == "__main__":
    main(run)
