"""add a task to params.yaml from a file of rows, after a look at the data"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from pipeline.commands.init import task_options

EXAMPLES = (
    "pruneonce add-task reviews.csv",
    "pruneonce add-task reviews.csv --text body --label stars --name stars",
    "pruneonce add-task pairs.csv --text question --pair other_question --label same",
)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="FILE", help="rows: csv, tsv, tab, jsonl, parquet")
    task_options(parser)


def lines(args: argparse.Namespace) -> Iterable[str]:
    from pipeline.params.profiles import MARK, PARAMS, dump, round_trip
    from pipeline.params.reading import parse_yaml, read_text
    from pipeline.projects import adding, parameters

    document = parse_yaml(read_text(PARAMS), str(PARAMS), round_trip())
    parameters.checked(document)  # as it stands
    task = yield from adding.chosen(args)
    yield from adding.lay(task, document, Path())
    text = dump(document)
    if text.startswith(MARK):  # it is no longer what a run wrote
        text = text.partition("\n")[2]
    parameters.save(PARAMS, text)
    yield f"params.yaml: tasks.{task.name} and its source are new. The language model is not pruned again, unless the corpus"
    yield "holds a test text of the task."
    yield "Next: pruneonce run"
