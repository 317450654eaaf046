"""Insert what commands print into README.md and docs/: `python -m docs.write`. With --check, fail where a page differs.

A page has `<!-- command: make help -->`, then what the command prints, then `<!-- end -->`. Output that begins as Markdown
(a table, a heading, a code block) is inserted as it is, any other output as a block of text.
"""

import argparse
import difflib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"^(<!-- command: (.+?) -->\n).*?^(<!-- end -->)$", re.MULTILINE | re.DOTALL)


def pages(root: Path) -> list[Path]:
    """README.md and every page of docs/."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def commands(page: str) -> list[str]:
    """The commands whose output the page shows."""
    return [match[2] for match in MARKED.finditer(page)]


def output(command: str, root: Path) -> str:
    """What a command prints in a folder, with this interpreter's programs and the folder's code."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    without = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    env = {**without, "PATH": path, "PYTHONPATH": str(root), "COLUMNS": "120", "NO_COLOR": "1"}
    done = subprocess.run(["bash", "-c", command], cwd=root, env=env, capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        sys.exit(f"expected output of {command!r}, found exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


def written(page: str, run: Callable[[str], str]) -> str:
    """The page with the output of its commands in place. run: command -> what it prints."""

    def inserted(match: re.Match[str]) -> str:
        text = run(match[2])
        block = text if text.startswith(("|", "#", "```")) else f"```text\n{text}\n```"
        return f"{match[1]}\n{block}\n\n{match[3]}"

    return MARKED.sub(inserted, page)


def differences(root: Path, run: Callable[[str], str]) -> dict[Path, str]:
    """Page -> its new text, of the pages that differ from what their commands print. run: command -> what it prints."""
    texts = {path: path.read_text() for path in pages(root)}
    new = {path: written(text, run) for path, text in texts.items()}
    return {path: text for path, text in new.items() if text != texts[path]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    new = differences(ROOT, partial(output, root=ROOT))
    for path, text in new.items():
        if args.check:
            print(*difference(path, text), sep="\n")
        else:
            path.write_text(text)
            print(path.relative_to(ROOT))
    if args.check and new:
        sys.exit("expected pages as their commands print them, found the differences above. Run `make docs`.")


def difference(path: Path, text: str) -> Iterator[str]:
    """The lines in which a page and its new text differ."""
    old, new = path.read_text().splitlines(), text.splitlines()
    return difflib.unified_diff(old, new, str(path), "what its commands print", lineterm="", n=1)


if __name__ == "__main__":
    main()
