"""`pruneonce add-task` and `init --data`: a stranger's rows, columns guessed, a block laid over params.yaml."""

import contextlib
import io
import json
import os
import shutil
import sys
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from pipeline import cli
from pipeline.projects import create
from tests.fuzz import damage
from tests.fuzz.case import ROOT, Files
from tests.fuzz.targets.commands import judge
from tests.fuzz.targets.rows import CELLS, SUFFIXES, TEXTS, table

OUTS: tuple[str, ...] = ()
SECONDS = 30.0
SHARE = 12

NAMES = (
    "text",
    "body",
    "review",
    "label",
    "stars",
    "id",
    "",
    "a\nb",
    "text",
    "ü",
    "x" * 300,
    "Unnamed: 0",
    "1",
    "null",
    "~",
)
WORDS: tuple[str, ...] = (*NAMES, *damage.WORDS, "nowhere")
FILES = ("rows", "my rows", "topic", "..rows", "x" * 200, "ü", "-", "a'b", "null", "1", "con", ".hidden")


def make(draw: Random) -> Files:
    kind, suffix = draw.choice(list(CELLS)), draw.choice(SUFFIXES)
    text, label, other = draw.choice(NAMES[:3]), draw.choice(NAMES[3:5]), draw.choice(NAMES)
    rows: list[dict[str, Any]] = [
        {
            text: f"{draw.choice(TEXTS)} {number}",
            label: draw.choice(CELLS[kind]),
            other: draw.choice((number, "", None, "a", 0.5)),
        }
        for number in range(draw.choice((0, 1, 3, 60, 60, 60)))
    ]
    if draw.random() < 0.4:
        rows = [row if draw.random() < 0.95 else damage.document(row, draw) for row in rows]
        rows = [row for row in rows if isinstance(row, dict)]
    content = table(rows, suffix)
    if draw.random() < 0.3:
        binary = suffix == ".parquet" or draw.random() < 0.5
        content = damage.data(content, draw) if binary else damage.text(content.decode("utf-8", "replace"), draw)
    name = f"{draw.choice(FILES)}{draw.choice((suffix,) * 9 + ('', '.txt', '.zip'))}"
    words = [draw.choice(("add-task", "add-task", "init"))]
    data = draw.choice((name,) * 9 + ("nowhere.csv", ".", "pipe.csv", "/dev/zero", ""))
    words += (
        [data]
        if words == ["add-task"]
        else [draw.choice(("new", ".", "params.yaml", "new/deep", *damage.WORDS[:4])), "--data", data]
    )
    for option in ("--text", "--label", "--pair", "--name", "--kind", "--model"):
        if draw.random() < 0.2 and (option != "--model" or words[0] == "init"):
            words.append(f"{option}={draw.choice(WORDS if option not in ('--kind',) else (*CELLS, 'x'))}")
    words += ["--yes"] * draw.randrange(2) + ["--own-texts"] * (words[0] == "init" and draw.random() < 0.2)
    words = [word.replace("\0", "") for word in words]  # the system gives no program an argument with one
    return {name: content, "argv.json": json.dumps(words).encode()}


def run(folder: Path) -> None:
    words = json.loads(Path("argv.json").read_text())
    if words[0] == "add-task":
        shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    os.mkfifo("pipe.csv")
    before = Path("params.yaml").read_bytes() if Path("params.yaml").exists() else b""
    said = io.StringIO()
    with (
        mock.patch.object(create, "create", return_value=iter([])),  # git and DVC take seconds
        mock.patch.object(sys, "argv", ["pruneonce", *words]),
        mock.patch.object(sys, "stdin", io.StringIO("\n\n1\nx\n")),
        contextlib.redirect_stderr(said),
    ):
        try:
            cli.main()
        except SystemExit as ended:
            assert words[0] == "init" or Path("params.yaml").read_bytes() == before, "params.yaml was changed, and an error"
            judge(ended, said.getvalue())
