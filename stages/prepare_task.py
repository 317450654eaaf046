"""A task's rows as tokenised splits that share no text; a split that the source lacks is carved from train.

reads   source     folder with train and perhaps validation, test     fetch
        model      for its tokenizer                                   fetch
writes  splits     train, validation, test: texts, label, input_ids; task.json: what the task is     data/tasks/<task>
"""

from pipeline.params import Common, PrepareTask
from pipeline.stage import Dep, Item, Log, Metrics, Out, main
from pruneonce import checkpoint, examples, kinds, tables, tasks
from pruneonce.errors import DataError


def run(item: Item, source: Dep, model: Dep, splits: Out, *, common: Common, prepare_task: PrepareTask, log: Log) -> Metrics:
    p, family = prepare_task, kinds.KINDS[prepare_task.kind]
    columns = [p.text, *([p.pair] if p.pair else []), p.label]

    def rows(split: str) -> list[examples.Example] | None:
        path = tables.find_split(source, split)
        if path is None:
            return None
        cells = tables.read_cells(path, columns, skip_rows=p.skip_rows)
        return [family.example(*(row[column] for column in columns)) for row in cells]

    given = {split: rows(split) for split in (*examples.SPLITS, *p.further_tests)}
    for needed in ("train", *p.further_tests):
        if given[needed] is None:
            there = sorted(f.name for f in source.iterdir())
            raise DataError(f"expected a file {needed}.* in source {p.source!r}, found {there}.")

    ratios = {"validation_ratio": p.validation_ratio, "test_ratio": p.test_ratio}
    found, dropped = examples.make_splits(given, **ratios, seed=common.seed)
    held_out = [chosen for name, chosen in found.items() if name != "train"]
    kind = family.of(p, found["train"], *held_out)
    tokenizer = checkpoint.load_tokenizer(model)
    setting = f"prepare_task.max_tokens, or that of tasks.{item}"
    checkpoint.check_tokens(model, p.max_tokens, setting=setting)  # now, before anything is trained
    splits.mkdir(parents=True, exist_ok=True)
    kinds.save(kind, splits)
    metrics = {}
    for split, chosen in found.items():
        cut = tasks.write_split(splits / f"{split}.arrow", chosen, kind, tokenizer, max_tokens=p.max_tokens)
        metrics[split] = {"rows": len(chosen), "cut": cut}
    if any(of["cut"] for of in metrics.values()):
        print(
            f"{item}: {_cut(metrics)} longer than max_tokens={p.max_tokens}, and cut. If their ends matter: raise {setting}."
        )
    return {
        **metrics,
        "classes": len(getattr(kind, "classes", ())),
        "dropped": {split: vars(d) for split, d in dropped.items()},
        "shared_second_texts": examples.shared_second_texts(found["train"], *held_out),
    }


def _cut(metrics: Metrics) -> str:
    """{"train": {"rows": 8, "cut": 2}} -> "2 of 8 train rows (25 %)"."""
    found = ((split, of["cut"], of["rows"]) for split, of in metrics.items() if of["cut"])
    return ", ".join(f"{cut} of {rows} {split} rows ({100 * cut / rows:.0f} %)" for split, cut, rows in found)


if __name__ == "__main__":
    main(run)
