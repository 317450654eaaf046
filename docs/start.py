"""Print what a new user types and sees: `pruneonce init` in a folder with a csv, a second task, another version."""

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def tables(folder: Path) -> None:
    """Two files as people have them: columns that say nothing of the task, a row twice, rows without a label."""
    lines = (ROOT / "tests/tiny/text/topic-train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    reviews = [
        [i, f"2026-01-{i % 28 + 1:02}", text, 5 if kind == "kitchen" else i % 2 + 1] for i, (text, kind) in enumerate(rows)
    ]
    reviews[7][3] = ""
    _write(folder / "reviews.csv", ["id", "posted", "body", "stars"], [*reviews, reviews[3]])
    _write(folder / "urgent.csv", ["message", "team", "urgent"], [[t, k, "yes" if len(t) > 42 else "no"] for t, k in rows])


def _write(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def session(folder: Path) -> Iterator[str]:
    """Each command, and what it prints."""
    for typed in (
        "ls",
        "pruneonce init . --data reviews.csv",
        "ls",
        "pruneonce add-task urgent.csv",
        "pruneonce add-task urgent.csv --text message --label urgent",
    ):
        yield f"$ {typed}"
        yield from _run(typed.split(), folder)


def _run(words: list[str], folder: Path) -> list[str]:
    if words[0] == "pruneonce":
        words = [sys.executable, "-P", "-m", "pruneonce.command", *words[1:]]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1", "LC_ALL": "C"}
    done = subprocess.run(words, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return (done.stdout + done.stderr).splitlines()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        tables(Path(made))
        print(*session(Path(made)), sep="\n")
