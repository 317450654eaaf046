"""The command `pruneonce`: the commands of any folder, and the start of a project's own commands in its folder."""

import argparse
import os
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from pruneonce import commandline, projects
from pruneonce.commands import accelerate, completion, doctor, inspect, pack, predict, unpack
from pruneonce.errors import PipelineError
from pruneonce.terminal import flushed_output, one_line_errors

COMMANDS: tuple[ModuleType, ...] = (
    predict,
    pack,
    unpack,
    inspect,
    accelerate,
    doctor,
    completion,
)  # in the order of the help
ANYWHERE = ("init",)  # a command of the project's code that needs no project's folder
PROJECT_COMMANDS = {  # name -> its line of help, which the file of pipeline/commands/ has as well
    "init": "make a project of your own in a folder, with a first task from a file of rows",
    "add-task": "add a task to params.yaml from a file of rows, after a look at the data",
    "plan": "check a profile and print what it would cost, without training",
    "run": "run every stage that something changed for",
    "trace": "where a model came from: its stages, scores, runs and sources; or what was made of it",
    "verify": "recompute the checksums behind a model, wherever its files lie, and name what differs",
    "why": "say why a stage would run: what changed, from what to what, and how long it took last time",
    "register": "register the int8 models of dvc.lock in MLflow; close runs of lost processes",
    "promote": "make the models of dvc.lock the champions, if every gate holds",
    "rollback": "put the alias champion back on the version before",
}
# Of the library, and in a project's folder of the project, which knows more. They are started in any folder, completion by
# every new shell. So they run no code of a clone that this package is not installed from.
WIDER = ("predict", "doctor", "completion")


def main() -> None:
    """The command line. A word that is no command of the library is one of the project in this folder."""
    words = sys.argv[1:]
    if words and words[0] in WIDER and _runs_here():
        with flushed_output(), one_line_errors():
            _run_in_project(words)
    if words and not words[0].startswith("-") and words[0] not in commandline.LIBRARY:
        with flushed_output(), one_line_errors():
            if not _is_project(Path()) and words[0] not in ANYWHERE:
                commandline.refuse_unknown(_parser(), words, [*commandline.LIBRARY, *PROJECT_COMMANDS])
            _run_in_project(words)
    commandline.run(_parser(), words, commandline.LIBRARY)


def _parser() -> argparse.ArgumentParser:
    parser = commandline.build(
        COMMANDS,
        description="Small files of compressed models, and the commands of a project that makes such models.",
        further=PROJECT_COMMANDS,
        title="commands in a project's folder",
    )
    parser.add_argument("--version", action="version", version=f"pruneonce {metadata.version('pruneonce')}")
    return parser


def _is_project(folder: Path) -> bool:
    return projects.is_clone(folder) or projects.named_version(folder) is not None


def _runs_here() -> bool:
    """Whether this folder is a project whose code is this package's, and what its commands import is installed."""
    if projects.is_foreign():
        return False
    try:
        projects.check_packages()
        if not projects.is_clone():
            projects.check_version()
    except PipelineError:
        return False
    return _is_project(Path())


def _run_in_project(words: list[str]) -> NoReturn:
    """Replace this process by the project's own command line.

    Only this folder is tried, not its parents. Paths in `words` are relative to it. A parent such as /tmp may be one that
    other users can write to: their code is not started.
    Raises PipelineError in any other folder, where DVC is not installed, and for a project of another version.
    """
    if not _is_project(Path()) and words[0] not in ANYWHERE:
        parents = [str(folder) for folder in Path.cwd().parents if _is_project(folder)]
        raise PipelineError(
            f"expected a project's folder for `pruneonce {words[0]}`, a clone or one of `pruneonce init`, found none. "
            f"Change to {' or '.join(parents[:1]) or 'one'}, or make one: pruneonce init FOLDER. Outside of projects there "
            f"are: {', '.join(commandline.LIBRARY)}."
        )
    projects.check_packages()
    if not projects.is_clone():  # which has the code in the folder itself
        projects.check_version()
        os.environ.update(projects.environment())
    os.execv(sys.executable, [sys.executable, "-m", "pipeline.cli", *words])


if __name__ == "__main__":
    main()
