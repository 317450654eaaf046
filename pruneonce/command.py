"""The command `pruneonce`: it packs and unpacks files anywhere, and starts a project's own commands in its folder."""

import argparse
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from pruneonce.errors import PipelineError
from pruneonce.terminal import flushed_output, one_line_errors

OWN = ("pack", "unpack")  # of the library; every other command belongs to a project
PROJECT_FILES = (Path("dvc.yaml"), Path("pipeline/cli.py"))
PROJECT_COMMANDS = """\
commands in a project's folder:
    plan      check a profile and print what it would cost, without training
    trace     print the stages, md5s, parameters and MLflow runs behind a file
    register  register the int8 models of dvc.lock in MLflow; close runs of lost processes
`pruneonce COMMAND --help` describes one.
"""


def main() -> None:
    """The command line. Every error a user can meet ends in one line and exit code 1."""
    words = sys.argv[1:]
    with flushed_output(), one_line_errors():
        if words and not words[0].startswith("-") and words[0] not in OWN:
            _run_in_project(words)
        args = _parser().parse_args(words)
        beside = args.file.parent / f"{args.file.stem}{args.ending}"  # with_suffix raises for `.`
        print(_convert(args.command, args.file, args.out or beside))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pruneonce",
        description="Small files of compressed models, and the commands of a project that makes such models.",
        epilog=PROJECT_COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, title="commands in any folder", metavar="COMMAND")
    for name, ending, purpose in (
        ("pack", ".packed", "store an ONNX file near its entropy"),
        ("unpack", ".onnx", "write the ONNX file of a packed one"),
    ):
        command = commands.add_parser(name, help=f"{purpose}, bit for bit")
        command.add_argument("file", type=Path)
        command.add_argument("out", type=Path, nargs="?", help=f"the file to write; default: FILE with the ending {ending}")
        command.set_defaults(ending=ending)
    return parser


def _convert(command: str, source: Path, target: Path) -> str:
    """Pack or unpack `source` into `target`. Returns one line that names both with their bytes."""
    from pruneonce.deployment import packing, unpacking  # here, for numpy: a project's command does not need it

    (packing.pack if command == "pack" else unpacking.unpack)(source, target)
    return f"{source}  {source.stat().st_size} bytes -> {target}  {target.stat().st_size} bytes"


def _run_in_project(words: list[str]) -> NoReturn:
    """Replace this process by the project's own command line.

    Only this folder is tried, not its parents. Paths in `words` are relative to it. A parent such as /tmp may be one that
    other users can write to: their code is not started.
    Raises PipelineError in any other folder, and where DVC is not installed.
    """
    if not all(file.is_file() for file in PROJECT_FILES):
        parents = [str(folder) for folder in Path.cwd().parents if all((folder / file).is_file() for file in PROJECT_FILES)]
        raise PipelineError(
            f"expected a project's folder for `pruneonce {words[0]}`, with {' and '.join(map(str, PROJECT_FILES))}, found "
            f"none. Change to {' or '.join(parents[:1]) or 'one'}; outside of projects there are: {', '.join(OWN)}."
        )
    try:
        metadata.version("dvc")
    except metadata.PackageNotFoundError:
        raise PipelineError(
            f"expected what the project's commands import, found no DVC beside {sys.executable}. Install it: make install"
        ) from None
    os.execv(sys.executable, [sys.executable, "-m", "pipeline.cli", *words])


if __name__ == "__main__":
    main()
