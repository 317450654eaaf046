"""A task's rows as tokenised splits that share no text, up to case and white space; a missing one is carved from train.

reads   source     folder with train and perhaps validation, test     fetch
        model      for its tokenizer                                   fetch
writes  splits     train, validation, test: texts, label, input_ids; task.json: what the task is     data/tasks/<task>
"""

from pipeline.params import Common, PrepareTask
from pipeline.stage import Dep, Item, Log, Metrics, Out, main
from pruneonce.models import checkpoint
from pruneonce.tasks import classes, examples, kinds
from pruneonce.tasks.preparation import class_remarks, cut_remark, read_examples
from pruneonce.tasks.splits import write_split


def run(item: Item, source: Dep, model: Dep, splits: Out, *, common: Common, prepare_task: PrepareTask, log: Log) -> Metrics:
    p, family = prepare_task, kinds.KINDS[prepare_task.kind]
    columns = [p.text, *([p.pair] if p.pair else []), p.label]
    names = (*examples.SPLITS, *p.further_tests)
    given = {name: read_examples(source, name, columns, family.example, skip_rows=p.skip_rows) for name in names}
    ratios = {"validation_ratio": p.validation_ratio, "test_ratio": p.test_ratio}
    found, dropped = examples.make_splits(given, **ratios, seed=common.seed)
    held_out = [rows for name, rows in found.items() if name != "train"]
    kind = family.from_rows(p, found["train"], *held_out)

    all_classes = getattr(kind, "classes", ())
    absent = {name: classes.absent(map(kind.classes_of, rows), all_classes) for name, rows in found.items()}
    absent = {name: some for name, some in absent.items() if some}
    doubtful = [] if p.labels else classes.maybe_missing(all_classes)
    for remark in class_remarks(absent, doubtful, classes=len(all_classes)):
        print(remark)

    tokenizer = checkpoint.load_tokenizer(model)
    setting = f"prepare_task.max_tokens, or that of tasks.{item}"
    checkpoint.check_tokens(model, p.max_tokens, setting=setting)  # now, before anything is trained
    splits.mkdir(parents=True, exist_ok=True)
    kinds.save(kind, splits)
    sizes = {}
    for name, rows in found.items():
        cut = write_split(splits / f"{name}.arrow", rows, kind, tokenizer, max_tokens=p.max_tokens)
        sizes[name] = {"rows": len(rows), "cut": cut}
    if remark := cut_remark(sizes, max_tokens=p.max_tokens, setting=setting):
        print(f"{item}: {remark}")
    return {
        **sizes,
        "classes": len(all_classes),
        "dropped": {name: vars(counts) for name, counts in dropped.items()},
        "shared_second_texts": examples.shared_second_texts(found["train"], *held_out),
        **({"lacking_classes": {name: len(some) for name, some in absent.items()}} if absent else {}),
    }


if __name__ == "__main__":
    main(run)
