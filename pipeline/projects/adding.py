"""A task is added to a document of parameters: chosen, checked, laid over. Lines say what was found, and what it costs."""

import argparse
import re
from collections.abc import Generator, Iterator
from pathlib import Path

from ruamel.yaml.comments import CommentedMap

from pipeline.projects import asking, parameters, tasks
from pipeline.projects.asking import Given
from pipeline.projects.tasks import Chosen
from pruneonce.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


def chosen(args: argparse.Namespace) -> Generator[str, None, Chosen]:
    """Yield what was guessed, and return the task. args: of `task_options`, and `data`."""
    given = Given(args.data, args.name, args.text, args.label, args.pair, args.kind)
    task: Chosen | None = None
    for each in asking.choose(given, None if args.yes else asking.at_terminal()):
        if isinstance(each, Chosen):
            task = each
        else:
            yield each
    assert task is not None
    return task


def lay(task: Chosen, document: CommentedMap, folder: Path) -> Iterator[str]:
    """Check the data, lay the task's sections over the document, and yield what a person should know.

    Raises ConfigError for a name that is taken or cannot be one, DataError for what the stages would refuse.
    """
    if not NAME.fullmatch(task.name):
        raise ConfigError(f"expected letters, digits, _ and - for the name of the task, found {task.name!r}. Give --name.")
    taken = {*document["tasks"], *document["fetch"], *document["fetch_local"]}
    if task.name in taken:
        raise ConfigError(
            f"expected a new name for the task, found {task.name!r}, which params.yaml has already. Give another one: --name"
        )
    found = tasks.survey(task, document["prepare_task"], seed=document["common"]["seed"])
    gates = tasks.gates(task.kind, len(found.splits["test"]))
    over = tasks.blocks(task, parameters.place(task.path, folder), tasks.training(task, document, found.train), gates)
    checked = parameters.lay(document, over)
    yield from tasks.findings(task, found, checked)
    yield tasks.cost(checked, task.name, found)
