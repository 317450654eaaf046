"""The two kinds of project's folder, a clone and one of `pruneonce init`, and where the code is that runs in them.

A clone holds the code itself. A project of `pruneonce init` names a version of this package in its params.yaml. It runs
the code that the package brings: the folders stages, pipeline and flows. In a wheel they lie in SHIPPED.
Standard library only: it is read before anything that may be missing.
"""

import os
import re
import sys
from importlib import metadata
from pathlib import Path

from pruneonce.errors import PipelineError

SHIPPED = Path(__file__).with_name("shipped")  # of a wheel; setup.py copies the project's code there
CLONE = (Path("dvc.yaml"), Path("pipeline/cli.py"))  # files of a clone
VERSION = re.compile(r"""^pruneonce:[ \t]*["']?([^\s"'#]+)""", re.MULTILINE)  # in params.yaml


def root() -> Path:
    """The folder that has stages, pipeline, flows, dvc.yaml and params.yaml: in a wheel SHIPPED, else the clone."""
    return SHIPPED if SHIPPED.is_dir() else Path(__file__).resolve().parents[1]


def installed() -> str:
    """The version of this package."""
    return metadata.version("pruneonce")


def is_clone(folder: Path = Path()) -> bool:
    return all((folder / file).is_file() for file in CLONE)


def is_foreign(folder: Path = Path()) -> bool:
    """Whether the folder is a clone that this package is not installed from: its code may be anybody's."""
    return is_clone(folder) and folder.resolve() != root()


def named_version(folder: Path = Path()) -> str | None:
    """The version that params.yaml in the folder names; None if this is no project of `pruneonce init`."""
    try:
        text = (folder / "params.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = VERSION.search(text)
    return found[1] if found and (folder / "dvc.yaml").is_file() else None


def check_version(folder: Path = Path()) -> None:
    """Raise PipelineError unless the package that is installed is the one that params.yaml in the folder names."""
    named, found = named_version(folder), installed()
    if named is not None and named != found:
        raise PipelineError(
            f"expected pruneonce {named}, which params.yaml names, found {found} installed. Install that one: pip install "
            f'"pruneonce[pipeline]=={named}"; or go over to {found}: set `pruneonce: "{found}"` in params.yaml. Then what '
            "the new version may compute otherwise runs again."
        )


def check_packages() -> None:
    """Raise PipelineError unless the packages that stages and flows import are installed. DVC stands for all of them."""
    try:
        metadata.version("dvc")
    except metadata.PackageNotFoundError:
        raise PipelineError(
            f"expected what the project's commands import, found no DVC beside {sys.executable}. Install it: "
            + ("make install" if is_clone() else f'pip install "pruneonce[pipeline]=={installed()}"')
        ) from None


def environment() -> dict[str, str]:
    """The variables with which Python finds the code, in this process and in those that it starts.

    The folder itself is not searched: its files, such as a json.py, must not be taken for modules.
    """
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(root())]
    return {"PYTHONPATH": os.pathsep.join([str(root()), *others]), "PYTHONSAFEPATH": "1"}


def enter() -> None:
    """Make the code importable in this process, and in those that it starts. Raises PipelineError for another version."""
    check_version()
    os.environ.update(environment())
    if str(root()) not in sys.path:
        sys.path.insert(0, str(root()))
