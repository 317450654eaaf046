"""The command `pruneonce`: it packs, inspects and accelerates files, and starts a project's own commands in its folder."""

import argparse
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from pruneonce.errors import PackError, PipelineError
from pruneonce.terminal import flushed_output, one_line_errors

OWN = ("pack", "unpack", "inspect", "accelerate")  # of the library; every other command belongs to a project
PROJECT_FILES = (Path("dvc.yaml"), Path("pipeline/cli.py"))
PROJECT_COMMANDS = """\
commands in a project's folder:
    plan      check a profile and print what it would cost, without training
    trace     print the stages, md5s, parameters and MLflow runs behind a file
    register  register the int8 models of dvc.lock in MLflow; close runs of lost processes
    promote   make the models of dvc.lock the champions, if every gate holds
    rollback  put the alias champion back on the version before
`pruneonce COMMAND --help` describes one.
"""


COLUMNS = """\
columns:
    zeros     share of the weights that are zero
    words     share of the words that the sparse kernel stores; a word is four neighbouring inputs of one output
    kernel    sparse, or stock: ONNX Runtime's own
    why       the costs of one token in cycles of all threads, or another reason

"""
EXECUTION = """\
execution:
    auto      the faster kernel for each matrix, by costs that were measured on some kinds of processor
    sparse    the sparse kernel for every matrix
    stock     ONNX Runtime's own kernel for every matrix
"""


def main() -> None:
    """The command line. Every error a user can meet ends in one line and exit code 1."""
    words = sys.argv[1:]
    with flushed_output(), one_line_errors():
        if words and not words[0].startswith("-") and words[0] not in OWN:
            _run_in_project(words)
        args = _parser().parse_args(words)
        print(args.run(args))


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
        command.set_defaults(run=_convert, ending=ending)
    for name, executions, run, purpose, epilog in (
        ("inspect", ("auto", "stock", "sparse"), _inspect, "print by which kernel each int8 matrix runs here", COLUMNS),
        ("accelerate", ("auto", "sparse"), _accelerate, "write a model with the operators of the sparse kernels", ""),
    ):
        command = commands.add_parser(
            name, help=purpose, epilog=epilog + EXECUTION, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("file", type=Path, help="an ONNX file, or a packed one")
        command.add_argument("--execution", choices=executions, default="auto", help="default: %(default)s")
        command.add_argument("--threads", type=_threads, default=0, help="of the session; default: one for each core")
        command.set_defaults(run=run)
    commands.choices["accelerate"].add_argument("out", type=Path, help="the ONNX file to write")
    return parser


def _threads(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number of threads, or 0 for one a core, found {text!r}")
    return int(text)


# The libraries are imported where they are used: a project's command needs neither numpy nor ONNX Runtime.


def _convert(args: argparse.Namespace) -> str:
    """Pack or unpack a file. Returns one line that names both files with their bytes."""
    from pruneonce.deployment import packing, unpacking

    target = args.out or args.file.parent / f"{args.file.stem}{args.ending}"  # with_suffix raises for `.`
    (packing.pack if args.command == "pack" else unpacking.unpack)(args.file, target)
    return _sizes(args.file, target)


def _inspect(args: argparse.Namespace) -> str:
    from pruneonce.deployment import overview, unpacking

    lines = overview.lines(unpacking.model(args.file), args.file, execution=args.execution, threads=args.threads)
    return "\n".join(lines)


def _accelerate(args: argparse.Namespace) -> str:
    """Write a file for programs that register the library themselves. Raises PackError if no matrix runs by the kernels."""
    from pruneonce.deployment import execution, safe_files, unpacking

    made = execution.accelerated(unpacking.model(args.file), execution=args.execution, threads=args.threads)
    if made is None:
        raise PackError(
            f"expected int8 matrices for the sparse kernels in {args.file}, found none for which they were chosen. See why: "
            f"`pruneonce inspect {args.file} --execution {args.execution} --threads {args.threads}`."
        )
    with safe_files.open_file(args.file) as source:
        safe_files.write_whole(args.out, [made], source)
    return f"{_sizes(args.file, args.out)}; it needs the library {execution.LIBRARY}"


def _sizes(source: Path, target: Path) -> str:
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
