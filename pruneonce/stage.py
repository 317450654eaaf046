"""Stages of a project of `pruneonce init`: `python -m pruneonce.stage sparsify ...` runs the one that this package brings.

In a clone the same is `python -m stages.sparsify ...`.
"""

import runpy
import sys

from pruneonce import projects
from pruneonce.errors import PipelineError
from pruneonce.terminal import one_line_errors


def main() -> None:
    """Run the stage that the first word names, with the other words, as its own command."""
    with one_line_errors():
        projects.enter()
        names = sorted(path.stem for path in (projects.root() / "stages").glob("*.py") if path.stem != "__init__")
        name = sys.argv[1] if len(sys.argv) > 1 else ""
        if name not in names:
            raise PipelineError(f"expected one of the stages {', '.join(names)}, found {name!r}.")
    del sys.argv[1]
    runpy.run_module(f"stages.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
