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


def written(page: str, root: Path) -> str:
    """The page with the output of its commands in place."""

    def inserted(match: re.Match[str]) -> str:
        text = output(match[2], root)
        block = text if text.startswith(("|", "#", "```")) else f"```text\n{text}\n```"
        return f"{match[1]}\n{block}\n\n{match[3]}"

    return MARKED.sub(inserted, page)


def differences(root: Path) -> dict[Path, str]:
    """Page -> its new text, of the pages that differ from what their commands print."""
    texts = {path: path.read_text() for path in pages(root)}
    new = {path: written(text, root) for path, text in texts.items()}
    return {path: text for path, text in new.items() if text != texts[path]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project's folder")
    args = parser.parse_args()
    found = differences(args.root)
    for path, text in found.items():
        if args.check:
            old, new = path.read_text().splitlines(), text.splitlines()
            print(*difflib.unified_diff(old, new, str(path), "what its commands print", lineterm="", n=1), sep="\n")
        else:
            path.write_text(text)
            print(path.relative_to(args.root))
    if args.check and found:
        sys.exit("expected pages as their commands print them, found the differences above. Run `make docs`.")


if __name__ == "__main__":
    main()
