"""`pruneonce predict`: texts on the command line, in csv, tsv, jsonl and txt, on standard input, for every kind of task."""

import contextlib
import io
import json
import sys
from pathlib import Path
from random import Random
from unittest import mock

from pruneonce import commandline
from pruneonce.commands import predict
from tests.fuzz import answering, damage
from tests.fuzz.case import Files
from tests.fuzz.targets.commands import judge

OUTS: tuple[str, ...] = ()
SECONDS = 20.0
SHARE = 14

TEXTS = (
    *("the rain in the harbour", "salt", "x" * 5000, "a " * 3000, "[CLS] [MASK] [SEP]", "\u200b\u00ad", "e\u0301\u0301"),
    *("\U0001f9c2", "\ufffd\ufffe", "\u202eabc", "a\rb", "a\x0bb\x1cc", "#" * 40, "\x7f", "\ud83d", "ﷺ" * 200),
    *damage.WORDS,
)
SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".txt")
COLUMNS = ("body", "text", "pair", "label", "nowhere", *damage.WORDS)
_made: dict[str, bytes] = {}


def start() -> None:
    for kind in answering.KINDS:
        _made[kind] = answering.file(kind)
    _made["pair"] = answering.file("classification", pair="pair")


def make(draw: Random) -> Files:
    kind = draw.choice(sorted(_made))
    words: list[str] = ["model.onnx"] + ["--json"] * draw.randrange(2)
    files: Files = {}
    if draw.random() < 0.35:
        for _ in range(draw.choice((1, 1, 1, 3))):
            words += [f"--text={draw.choice(TEXTS)}"]
            words += [f"--pair={draw.choice(TEXTS)}"] if draw.random() < (0.9 if kind in PAIRED else 0.05) else []
    else:
        suffix = draw.choice(SUFFIXES)
        name = draw.choice((f"rows{suffix}",) * 8 + ("-", "-", "folder", "nowhere.csv", "rows", "pipe.csv", "/dev/zero", ""))
        files[f"rows{suffix}"] = _table(suffix, draw)
        words += ["--file", name]
        for option in ("--column", "--pair-column"):
            words += [f"{option}={draw.choice(COLUMNS)}"] if draw.random() < 0.2 else []
        words += [f"--skip-rows={draw.choice(('0', '1', '9', '-1', 'x', '9' * 30))}"] if draw.random() < 0.2 else []
    return {**files, "case.json": json.dumps({"kind": kind, "words": words}).encode()}


PAIRED = ("pair", "question_answering")


def _table(suffix: str, draw: Random) -> bytes:
    names = [draw.choice(("body", "text")), "pair", "label"]
    rows = [{name: draw.choice(TEXTS) for name in names} for _ in range(draw.choice((0, 1, 4)))]
    if suffix == ".jsonl":
        rows = [damage.document(row, draw) if draw.random() < 0.4 else row for row in rows]
        content = b"\n".join(map(damage.dumped, rows))
    elif suffix == ".txt":
        content = "\n".join(row["pair"] for row in rows).encode("utf-8", "surrogatepass")
    else:
        mark = "," if suffix == ".csv" else "\t"
        quoted = [mark.join(f'"{cell}"' if mark in cell or "\n" in cell else cell for cell in row.values()) for row in rows]
        content = "\n".join([mark.join(names), *quoted]).encode("utf-8", "surrogatepass")
    return damage.data(content, draw) if draw.random() < 0.3 else content


def run(folder: Path) -> None:
    case = json.loads(Path("case.json").read_text())
    Path("model.onnx").write_bytes(_made[case["kind"]])
    Path("folder").mkdir()
    given = next(iter(Path().glob("rows.*")), None)
    entry = io.TextIOWrapper(io.BytesIO(given.read_bytes() if given else b""))
    said = io.StringIO()
    parser = commandline.build((predict,), description="")
    with mock.patch.object(sys, "stdin", entry), contextlib.redirect_stderr(said):
        try:
            commandline.run(parser, ["predict", *case["words"]], ["predict"])
        except SystemExit as ended:
            judge(ended, said.getvalue())
