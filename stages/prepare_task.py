"""A task's rows as tokenised splits that share no text, up to case and white space; a missing one is carved from train.

reads   source     folder with train and perhaps validation, test     fetch
        model      for its tokenizer                                   fetch
writes  splits     train, validation, test: texts, label, input_ids; task.json: what the task is     data/tasks/<task>
"""

from pipeline.params.sections import Common, PrepareTask
from pipeline.stage import Dep, Item, Log, Metrics, Out, main
from pruneonce.models import checkpoint
from pruneonce.sources import tables
from pruneonce.tasks import examples, kinds
from pruneonce.tasks.splits import write_split


def run(item: Item, source: Dep, model: Dep, splits: Out, *, common: Common, prepare_task: PrepareTask, log: Log) -> Metrics:
    p, family = prepare_task, kinds.KINDS[prepare_task.kind]
    columns = [p.text, *([p.pair] if p.pair else []), p.label]

    def rows(split: str) -> list[examples.Example] | None:
        find = tables.find_split if split in ("validation", "test") else tables.need_split
        path = find(source, split)
        return None if path is None else [*tables.read_as(path, columns, family.example, skip_rows=p.skip_rows)]

    given = {split: rows(split) for split in (*examples.SPLITS, *p.further_tests)}

    ratios = {"validation_ratio": p.validation_ratio, "test_ratio": p.test_ratio}
    found, dropped = examples.make_splits(given, **ratios, seed=common.seed)
    held_out = [chosen for name, chosen in found.items() if name != "train"]
    kind = family.of(p, found["train"], *held_out)
    classes = getattr(kind, "classes", ())
    lacking = {
        split: names for split, chosen in found.items() if (names := examples.lacking(map(kind.shown, chosen), classes))
    }
    for split, names in lacking.items():
        print(f"{split} lacks {len(names)} of {len(classes)} classes, e.g. {', '.join(names[:12])}")
    if not p.labels and (names := examples.doubtful(classes)):
        print(
            f"{names} are taken for classes. Leave the cells of missing labels empty; else name all in the task's `labels`."
        )
    tokenizer = checkpoint.load_tokenizer(model)
    setting = f"prepare_task.max_tokens, or that of tasks.{item}"
    checkpoint.check_tokens(model, p.max_tokens, setting=setting)  # now, before anything is trained
    splits.mkdir(parents=True, exist_ok=True)
    kinds.save(kind, splits)
    metrics = {}
    for split, chosen in found.items():
        cut = write_split(splits / f"{split}.arrow", chosen, kind, tokenizer, max_tokens=p.max_tokens)
        metrics[split] = {"rows": len(chosen), "cut": cut}
    if any(of["cut"] for of in metrics.values()):
        print(
            f"{item}: {_cut(metrics)} longer than max_tokens={p.max_tokens}, and cut. If their ends matter: raise {setting}."
        )
    return {
        **metrics,
        "classes": len(classes),
        "dropped": {split: vars(d) for split, d in dropped.items()},
        "shared_second_texts": examples.shared_second_texts(found["train"], *held_out),
        **({"lacking_classes": {split: len(names) for split, names in lacking.items()}} if lacking else {}),
    }


def _cut(metrics: Metrics) -> str:
    """{"train": {"rows": 8, "cut": 2}} -> "2 of 8 train rows (25 %)"."""
    found = ((split, of["cut"], of["rows"]) for split, of in metrics.items() if of["cut"])
    return ", ".join(f"{cut} of {rows} {split} rows ({100 * cut / rows:.0f} %)" for split, cut, rows in found)


if __name__ == "__main__":
    main(run)
