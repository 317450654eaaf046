"""Print every folder of code with its modules, each with the first line of its docstring."""

import ast
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("stages", "pruneonce", "study", "pipeline", "flows")


def summary(path: Path) -> str:
    """The first line of a module's docstring, without its full stop."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0].rstrip(".:")


def lines(folder: Path, indent: str = "") -> Iterator[str]:
    """The folder, its modules, then its packages."""
    yield f"{indent}{folder.name}/".ljust(26) + summary(folder / "__init__.py")
    inner = f"{indent}  "
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield f"{inner}{path.name}".ljust(26) + summary(path)
    for path in sorted(folder.glob("*/__init__.py")):
        yield from lines(path.parent, inner)


if __name__ == "__main__":
    for folder in FOLDERS:
        print(*lines(Path(folder)), sep="\n")
