"""make a project of your own in a folder, with a first task from a file of rows"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.params.metrics import METRICS

EXAMPLES = (
    "pruneonce init reviews --data reviews.csv",
    "pruneonce init . --data reviews.csv --text body --label stars",
    "pruneonce init news --data news.jsonl --sparse-model ../sparse --model ../dense",
)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="of the new project; it may exist, and hold data")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="rows of the first task: csv, tsv, jsonl, parquet; default: Reuters news, R8",
    )
    task_options(parser)
    parser.add_argument(
        "--model", metavar="WHERE", help="dense model: a folder, or OWNER/NAME@COMMIT of the hub; default: MiniLM-L6"
    )
    parser.add_argument(
        "--sparse-model", metavar="WHERE", help="a sparse checkpoint of --model: it is not pruned, its zeros are locked"
    )
    parser.add_argument("--own-texts", action="store_true", help="the corpus is the task's texts alone; default: and news")


def task_options(parser: argparse.ArgumentParser) -> None:
    """Those of every command that makes a task from a file."""
    parser.add_argument("--text", metavar="COLUMN", help="default: guessed")
    parser.add_argument("--label", metavar="COLUMN", help="default: guessed")
    parser.add_argument("--pair", metavar="COLUMN", help="of a second text, or of the context of a question")
    parser.add_argument("--kind", choices=tuple(METRICS), help="default: guessed from the label")
    parser.add_argument("--name", help="of the task; default: that of the file")
    parser.add_argument("--yes", action="store_true", help="take what is guessed, ask nothing")


def lines(args: argparse.Namespace) -> Iterable[str]:
    from pipeline.params.profiles import dump
    from pipeline.projects import create, parameters
    from pruneonce.errors import ConfigError

    create.check(args.folder)
    given = [f"--{name}" for name in ("text", "label", "pair", "kind", "name") if getattr(args, name) is not None]
    if given and not args.data:
        raise ConfigError(
            f"expected --data FILE beside {', '.join(given)}, found none: without it the first task is R8. Give the file "
            "that they describe, or leave them out."
        )
    document = parameters.default()
    parameters.drop_tasks(document, *([] if args.data else ["r8"]))
    imported = None
    if args.model:
        parameters.set_model(document, args.model, args.folder)
    if args.sparse_model:
        imported = parameters.set_sparse(document, args.sparse_model, args.folder)
        document["gates"]["least_sparsity"] = 0.0  # it is not known before it is fetched
    if imported is not None:
        yield from _inspected(imported, document)
    data: list[str] = []
    if args.data:
        yield from _first_task(args, document)
        inside = parameters.place(args.data, args.folder)
        data = [] if inside.startswith("..") else [inside]
    elif args.own_texts:
        parameters.set_corpus(document, ("r8", "Text"), own=True)
        document["prepare_corpus"]["documents"][0]["skip_rows"] = 2
    checked = parameters.checked(document)
    yield from create.create(args.folder, dump(document), checked, imports=bool(args.sparse_model), data=data)
    here = "" if args.folder.resolve() == Path.cwd() else f"cd {args.folder} && "
    yield f"Next: {here}pruneonce run"


def _first_task(args: argparse.Namespace, document) -> Iterator[str]:
    from pipeline.projects import adding, parameters

    task = yield from adding.chosen(args)
    yield from adding.lay(task, document, args.folder)
    parameters.set_corpus(document, (task.name, task.text), own=args.own_texts)


def _inspected(folder: Path, document) -> Iterator[str]:
    """Look at a sparse checkpoint of this machine now, and write what it holds where the page of the plan reads it."""
    from pruneonce import sparse_import

    found = sparse_import.inspect(folder)
    yield found.lines()[-1]
    section = document["sparsify"]
    section["pattern"] = found.pattern
    section["sparsity"] = 0.5 if ":" in found.pattern else round(found.sparsity, 4)  # of 2:4 and 4:8 it is a law
    document["gates"]["least_sparsity"] = max(0.0, round(section["sparsity"] - 0.01, 2))
    section["initial_sparsity"] = min(section["initial_sparsity"], section["sparsity"])
