"""Print what `pruneonce trace`, `verify` or `why` say of what git keeps: `python -m docs.traced trace data/export/r8/int8.onnx`.

It works in a folder of its own with dvc.lock, params.yaml, the code and the small outs, without data, history and MLflow.
So a page shows the same on every machine.
`--set sparsify.sparsity=0.9` changes a parameter there, `--change FILE` a file. For `why` every file that is not changed
counts as dvc.lock has it.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from ruamel.yaml import YAML

from pipeline import cli
from pipeline.lineage import blocks, changes
from pipeline.lineage.graph import is_code
from pipeline.params.document import override
from pipeline.params.reading import read_yaml
from pipeline.tracking import lock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="", metavar="section.key=value")
    parser.add_argument("--change", type=Path, metavar="FILE")
    args, words = parser.parse_known_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory() as folder:
        for path in kept():
            _copy(path, Path(folder) / path)
        with contextlib.chdir(folder), mock.patch.object(sys, "argv", ["pruneonce", *words]), _as_recorded(words):
            if args.set:
                document = read_yaml(Path("params.yaml"))
                override(document, args.set)
                with Path("params.yaml").open("w") as file:
                    YAML(typ="safe").dump(document, file)
            if args.change:
                with args.change.open("a") as file:
                    file.write("\n")
            try:
                cli.main()
            except SystemExit as ended:  # a page shows an error too
                print(ended.code)


def kept() -> Iterator[Path]:
    """What git keeps of a run: the files of DVC, the code that dvc.lock names, the outs that no cache keeps."""
    yield from (Path(name) for name in ("dvc.yaml", "dvc.lock", "params.yaml", ".dvcignore"))
    stages = [stage for stage in lock.current().values() if lock.project(stage.name) == lock.PIPELINE]
    defined = blocks.defined()
    paths = {path for stage in stages for path in stage.deps if is_code(path)}
    paths |= {path for stage in stages for path in stage.outs if not defined[stage.name].outs.get(path, True)}
    yield from (Path(path) for path in sorted(paths) if Path(path).exists())


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    else:
        shutil.copy2(source, target)


@contextlib.contextmanager
def _as_recorded(words: list[str]) -> Iterator[None]:
    """For `why`: what is not in the folder, or may have changed since, counts as dvc.lock has it."""
    if words[:1] != ["why"]:
        yield
        return
    stages = lock.locked().values()
    recorded = {path: md5 for stage in stages for path, md5 in {**stage.deps, **stage.outs}.items()}
    with (
        mock.patch.object(changes.Workspace, "_md5", lambda self, path: recorded.get(path)),
        mock.patch.object(changes.Workspace, "kept", lambda *_: True),
    ):
        yield


if __name__ == "__main__":
    main()
